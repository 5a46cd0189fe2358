"""gemv_experts and gemv_experts_swiglu: equal to dequantise, then multiply with the chosen."""

from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as GGMLType

from m40llm import reference
from m40llm.fuzz.bounds import assert_within, gated_sums_bound
from m40llm.fuzz.definition import target
from m40llm.fuzz.matmul import error_bound
from m40llm.fuzz.strategies import choices, flags, seeds, sizes
from m40llm.fuzz.targets.matmul_forms import drawn, row_cols
from m40llm.kernels import gemv_experts as kernels

N_EXPERTS = 5
# Type, rows a warp, slots that share a row of x: a kernel each, a second or two to compile.
FORMS = choices(
    [("F16", 1, 1), ("Q4_0", 4, 3), ("Q4_K", 4, 1), ("F32", 2, 2), ("Q6_K", 1, 3), ("MXFP4", 2, 1)]
)
SWIGLU_FORMS = choices([("F16", 2, 2), ("Q4_K", 4, 3), ("Q8_0", 2, 1)])


@target(
    ops=kernels,
    form=FORMS,
    n_x=sizes(2, 3),
    n_out=sizes(32, 40),
    n_units=sizes(32, 34),
    is_exact=flags(),
    seed=seeds(),
)
def gemv_experts(
    card: Any, ops: Any, form: tuple[str, int, int], n_x: int, n_out: int, n_units: int,
    is_exact: bool, seed: int,
) -> None:  # fmt: skip
    ggml_type, warp_rows, x_slots = form
    rng, n_cols, n_slots = np.random.default_rng(seed), row_cols(ggml_type, n_units), n_x * x_slots
    case = drawn(card, rng, ggml_type, n_x, N_EXPERTS * n_out, n_cols, is_exact=is_exact)
    ids = rng.integers(0, N_EXPERTS, n_slots).astype(np.int32)
    out = card.guarded((n_slots, n_out))
    args = card.upload(case.x), card.upload(ids), out
    ops.gemv_experts(case.w, *args, stream=card, warp_rows=warp_rows)
    got, of_experts = card.read(out), case.weights.reshape(N_EXPERTS, n_out, n_cols)
    expected = reference.matmul_experts(of_experts, case.x, ids)
    if is_exact:
        np.testing.assert_array_equal(got, expected)
    else:
        bound = error_bound(GGMLType[ggml_type], case.data, case.x)
        assert_within(got, expected, chosen(bound, ids, n_out))


@target(
    ops=kernels, form=SWIGLU_FORMS, n_x=sizes(2, 3), n_out=sizes(16, 24), n_units=sizes(8, 18),
    seed=seeds(),
)  # fmt: skip
def gemv_experts_swiglu(
    card: Any, ops: Any, form: tuple[str, int, int], n_x: int, n_out: int, n_units: int, seed: int
) -> None:
    ggml_type, warp_rows, x_slots = form
    rng, n_cols, n_slots = np.random.default_rng(seed), row_cols(ggml_type, n_units), n_x * x_slots
    case = drawn(card, rng, ggml_type, n_x, 2 * N_EXPERTS * n_out, n_cols, is_exact=False)
    x = (rng.standard_normal(case.x.shape) / 8).astype(np.float32)  # silu is neither 0 nor linear
    ids = rng.integers(0, N_EXPERTS, n_slots).astype(np.int32)
    out = card.guarded((n_slots, n_out))
    args = card.upload(x), card.upload(ids), out
    ops.gemv_experts_swiglu(case.w, *args, stream=card, warp_rows=warp_rows)
    y, error = (
        np.concatenate([chosen(half, ids, n_out) for half in np.split(of_all, 2, axis=1)], axis=1)
        for of_all in (
            reference.matmul(case.weights, x),
            error_bound(GGMLType[ggml_type], case.data, x),
        )
    )
    expected = reference.swiglu(*np.split(y, 2, axis=1))
    assert_within(card.read(out), expected, gated_sums_bound(y, error, expected))


def chosen(of_all: Any, ids: Any, n_out: int) -> Any:
    """Of [n_x, n_experts * n_out] what each slot has chosen: [n_slots, n_out]."""
    rows = np.arange(ids.size) * len(of_all) // ids.size
    return of_all.reshape(len(of_all), -1, n_out)[rows, ids]
