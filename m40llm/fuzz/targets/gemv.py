"""gemv and gemv_swiglu, of every type of weights: equal to dequantise, then multiply."""

from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as GGMLType

from m40llm import reference
from m40llm.fuzz.bounds import assert_within, gated_sums_bound
from m40llm.fuzz.definition import target
from m40llm.fuzz.matmul import error_bound
from m40llm.fuzz.strategies import choices, flags, seeds, sizes
from m40llm.fuzz.targets.matmul_forms import drawn, extras, row_cols
from m40llm.kernels import gemv as kernels

# Type, tokens, rows a warp, bias, accumulate: a kernel each, a second or two to compile.
FORMS = choices(
    [
        ("F16", 1, 1, False, True),
        ("F32", 1, 4, False, False),
        ("F16", 3, 2, True, False),
        ("Q4_0", 1, 4, False, False),
        ("Q4_1", 2, 2, True, True),
        ("Q5_0", 1, 2, False, True),
        ("Q5_1", 1, 4, False, False),
        ("Q8_0", 1, 1, False, True),
        ("Q4_K", 1, 4, False, False),
        ("Q5_K", 2, 4, False, True),
        ("Q6_K", 3, 2, False, False),
        ("Q2_K", 1, 4, False, False),
        ("Q3_K", 2, 2, True, False),
        ("IQ4_NL", 1, 2, False, False),
        ("IQ4_XS", 1, 4, False, True),
        ("MXFP4", 3, 2, False, False),
    ]
)
SWIGLU_FORMS = choices([("F16", 2, 2), ("F16", 1, 4), ("Q4_0", 1, 2), ("Q6_K", 2, 4)])


@target(
    ops=kernels,
    form=FORMS,
    n_rows=sizes(32, 70),
    n_units=sizes(32, 34),
    is_exact=flags(),
    seed=seeds(),
)
def gemv(
    card: Any, ops: Any, form: tuple[str, int, int, bool, bool], n_rows: int, n_units: int,
    is_exact: bool, seed: int,
) -> None:  # fmt: skip
    ggml_type, n_tokens, warp_rows, has_bias, accumulate = form
    rng, n_cols = np.random.default_rng(seed), row_cols(ggml_type, n_units)
    case = drawn(card, rng, ggml_type, n_tokens, n_rows, n_cols, is_exact=is_exact)
    bias, before, added = extras(rng, n_tokens, n_rows, has_bias, accumulate)
    shape = (n_tokens, n_rows)
    out = card.guarded(shape) if before is None else card.upload(before, read_only=False)
    ops.gemv(
        case.w, card.upload(case.x), out, stream=card, warp_rows=warp_rows,
        bias=None if bias is None else card.upload(bias), accumulate=accumulate,
    )  # fmt: skip
    case.check(card.read(out), added)


@target(ops=kernels, form=SWIGLU_FORMS, n_out=sizes(16, 40), n_units=sizes(8, 18), seed=seeds())
def gemv_swiglu(
    card: Any, ops: Any, form: tuple[str, int, int], n_out: int, n_units: int, seed: int
) -> None:
    ggml_type, n_tokens, warp_rows = form
    rng, n_cols = np.random.default_rng(seed), row_cols(ggml_type, n_units)
    case = drawn(card, rng, ggml_type, n_tokens, 2 * n_out, n_cols, is_exact=False)
    x = (rng.standard_normal(case.x.shape) / 8).astype(np.float32)  # silu is neither 0 nor linear
    out = card.guarded((n_tokens, n_out))
    ops.gemv_swiglu(case.w, card.upload(x), out, stream=card, warp_rows=warp_rows)
    y = reference.matmul(case.weights, x)
    expected = reference.swiglu(y[:, :n_out], y[:, n_out:])
    error = error_bound(GGMLType[ggml_type], case.data, x)
    assert_within(card.read(out), expected, gated_sums_bound(y, error, expected))
