"""gemm, of every type of weights: exact on whole numbers, for any sizes."""

from typing import Any

import numpy as np

from m40llm.fuzz.definition import target
from m40llm.fuzz.strategies import choices, flags, seeds, sizes
from m40llm.fuzz.targets.matmul_forms import drawn, extras, row_cols
from m40llm.kernels import gemm as kernels
from m40llm.kernels.gemm_tiles import Tile

SMALL, WIDE, BIG = Tile(64, 64), Tile(64, 128), Tile(128, 128)
FEW, FEWER = Tile(32, 64, 4), Tile(16, 128, 4)
# Type, tile, splits, x in FP16, bias, accumulate: a kernel each, a second or two to compile.
FORMS = choices(
    [
        ("F16", SMALL, 1, False, False, True),
        ("F32", SMALL, 1, False, False, False),
        ("F16", SMALL, 2, True, True, False),
        ("F16", BIG, 1, False, False, False),
        ("F16", WIDE, 3, False, False, False),
        ("F16", FEW, 1, False, False, False),
        ("F16", FEWER, 3, False, False, True),
        ("Q4_0", SMALL, 1, False, False, True),
        ("Q4_1", FEW, 2, False, False, False),
        ("Q5_0", SMALL, 1, False, False, False),
        ("Q5_1", FEWER, 1, False, False, False),
        ("Q8_0", SMALL, 2, False, True, True),
        ("Q4_K", SMALL, 1, False, False, False),
        ("Q5_K", FEW, 1, False, False, False),
        ("Q6_K", SMALL, 1, False, False, True),
        ("Q2_K", SMALL, 1, False, False, False),
        ("Q3_K", FEW, 1, False, False, True),
        ("IQ4_NL", SMALL, 2, False, False, False),
        ("IQ4_XS", FEWER, 1, False, False, False),
        ("MXFP4", SMALL, 1, False, True, False),
    ]
)


@target(
    ops=kernels,
    form=FORMS,
    n_tokens=sizes(64, 67),
    n_rows=sizes(64, 67),
    n_units=sizes(8, 10),
    is_exact=flags(),
    seed=seeds(),
)
def gemm(
    card: Any, ops: Any, form: tuple[str, Tile, int, bool, bool, bool], n_tokens: int, n_rows: int,
    n_units: int, is_exact: bool, seed: int,
) -> None:  # fmt: skip
    ggml_type, tile, n_splits, x_is_half, has_bias, accumulate = form
    rng, n_cols = np.random.default_rng(seed), row_cols(ggml_type, n_units)
    is_exact = is_exact or x_is_half
    case = drawn(card, rng, ggml_type, n_tokens, n_rows, n_cols, is_exact=is_exact)
    bias, before, added = extras(rng, n_tokens, n_rows, has_bias, accumulate)
    shape = (n_tokens, n_rows)
    out = card.guarded(shape) if before is None else card.upload(before, read_only=False)
    x_on = card.upload(case.x.astype(np.float16 if x_is_half else np.float32))
    sums = card.poisoned((n_splits * tile.n_tiles(n_tokens, n_rows) * tile.n_outputs,))
    arrived = card.upload(np.zeros(ops.MAX_TILES, np.int32), read_only=False)
    workspace = ops.Workspace(sums, arrived)
    ops.gemm(
        case.w, x_on, out, stream=card, tile=tile, n_splits=n_splits, workspace=workspace,
        bias=None if bias is None else card.upload(bias), accumulate=accumulate,
    )  # fmt: skip
    case.check(card.read(out), added)
