"""Matrix product: out[m, n] = sum_k x[m, k] * W[n, k]  (+ bias[n]) (+ out[m, n] as it was).

x      float32 or float16[n_tokens, n_cols]   any n_tokens >= 1; less than 4 GiB
W      Planes[n_rows, n_cols]                 F32, F16 or quantised; any n_rows; n_cols as planes.py
                                              has it (multiples of the block; F16 8, F32 4)
bias   float32[n_rows]
out    float32[n_tokens, n_rows]              aliases nothing

grid     (ceil(n_rows / tile.n_rows), ceil(n_tokens / tile.n_tokens), n_splits); of more tiles than
         the card holds blocks, one dimension, in bands (gemm_parts.py)
FLOPs    2 * n_tokens * n_rows * n_cols, in FP32 (compute-bound from about 16 tokens on)
shared   2 buffers of 16 columns of both tiles (gemm_tiles.py): 32 KiB for 128 x 128
sm_52    registers at most 128, 16 warps on an SM (25 %); 168 (12 warps) for tiles of groups and of
         few threads and for types with high bits of quants, 208 (8 warps) for both together
         FFMA share of the loop, all else in it counted: F16 128 x 128 90.0 %, 64 x 128 88 %,
         64 x 64 87 %, 32 x 64 84 %, 16 x 128 79 %; 128 x 128 of Q8_0 88 %, Q4_0 88 %, Q4_K 87 %

While a block multiplies one step of 16 columns from shared memory, 8 x 8 sums a thread, its loads
of the next are under way; weights are dequantised on the way into shared memory. The columns that
are no full step come first, so that the loop has no bounds. Where out has too few tiles for the
card, blocks share the columns of a tile, and the last of them adds up what all have left in a
workspace (gemm_sums.py); where it has many, they share the last ones. Which tile, and how many
blocks share one, says gemm_choice.py.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np
from gguf import GGMLQuantizationType as GGMLType
from numba import cuda, float32, int32, uint32

from m40llm.errors import KernelContractError
from m40llm.kernels.contract import Kernel, Launcher, check_array
from m40llm.kernels.gemm_choice import block_slots, choose, registers_of, tail
from m40llm.kernels.gemm_parts import N_KEPT, part_of
from m40llm.kernels.gemm_steps import add_steps_of
from m40llm.kernels.gemm_sums import add_groups_of, add_splits_of, store_sums_of
from m40llm.kernels.gemm_tiles import Tile, place_of
from m40llm.kernels.intrinsics import as_bytes
from m40llm.kernels.planes import Planes, check_planes

MAX_X_BYTES: Final = 2**32  # offsets of x have 32 bits
# Up to so many rows of x, all have their sums in one order: no tile is shared that others are not.
ALIKE_TOKENS: Final = 128
MAX_TILES: Final = 4096  # of out, that blocks may share the columns of


@dataclass(frozen=True)
class Workspace:
    """Where blocks that share a tile leave their sums. One launch at a time uses it.

    sums     float32[n]: workspace_floats(n_sms) are enough
    arrived  int32[MAX_TILES], zeros: how many blocks have left theirs
    """

    sums: Any
    arrived: Any


def workspace_floats(n_sms: int) -> int:
    """Of all sums that blocks leave: they are not many more than a card holds at a time."""
    return 6 * 128 * 128 * n_sms


@cache
def _compile(
    type: GGMLType, tile: Tile, is_split: bool, x_is_half: bool, has_bias: bool, accumulate: bool,
    in_bands: bool = False,
) -> Kernel:  # fmt: skip
    n_threads, n_groups, n_floats = tile.group_threads, tile.n_groups, tile.n_floats
    place = place_of(tile)
    add_steps, add_groups = add_steps_of(type, tile, x_is_half), add_groups_of(tile)
    add_splits, store_sums = add_splits_of(tile), store_sums_of(tile, has_bias, accumulate)
    find_part, part_again = part_of(tile, in_bands)

    def gemm(
        quants: Any, highs: Any, scales: Any, x: Any, bias: Any, sums: Any, arrived: Any, out: Any,
        n_whole: Any, n_splits: Any,
    ) -> None:  # fmt: skip
        pool = cuda.shared.array(n_floats, float32, alignment=16)
        ticket, kept = cuda.shared.array(1, int32), cuda.shared.array(N_KEPT, int32)
        acc = cuda.local.array((8, 8), float32)
        for i in range(8):
            for j in range(8):
                acc[i, j] = float32(0)
        thread = uint32(cuda.threadIdx.x)
        group, t = int32(0), thread
        if n_groups > 1 or in_bands:  # 0 there, too, but 128 x 128 is 0.7 % faster with it (H100)
            group, t = int32(thread // uint32(n_threads)), uint32(thread % uint32(n_threads))
        n_tokens, n_rows = int32(out.shape[0]), int32(out.shape[1])
        part = find_part(kept, n_tokens, n_rows, n_whole, n_splits)
        token_at, row_at = place(t)
        add_steps(
            quants, highs, scales, x, n_tokens, n_rows, part,
            as_bytes(pool), group, t, token_at, row_at, acc,
        )  # fmt: skip
        if n_groups > 1:
            add_groups(pool, group, t, acc)
        part, t = part_again(kept, t)
        token_at, row_at = place(t)
        is_shared = is_split and part.n_splits > 1
        if is_shared and not add_splits(sums, arrived, ticket, part, group == 0, t, acc):
            return
        store_sums(
            acc, pool, group == 0, token_at, row_at, part.first_token, part.first_row, bias, out
        )

    return Kernel(gemm, registers=registers_of(type, tile))


def gemm(
    w: Planes,
    x: Any,
    out: Any,
    *,
    stream: Launcher,
    bias: Any = None,
    accumulate: bool = False,
    tile: Tile | None = None,
    n_splits: int | None = None,
    workspace: Workspace | None = None,
) -> None:
    """out (+)= x W^T (+ bias).

    tile            None: as gemm_choice.py says
    n_splits        blocks that share a tile; None: as it says, or 1 if a tile is given. With 1, of
                    many tiles the last may still be shared
    workspace       without one, no tile is shared
    """
    n_tokens, x_is_half = int(x.shape[0]), np.dtype(x.dtype) == np.float16
    if n_tokens < 1:
        raise KernelContractError("x: expected at least one row, got none")
    check_planes(w)
    n_bytes = n_tokens * w.n_cols * np.dtype(x.dtype).itemsize
    if n_bytes >= MAX_X_BYTES:
        raise KernelContractError(f"x: expected less than 4 GiB, got {n_bytes:,} bytes")
    check_array("x", x, np.float16 if x_is_half else np.float32, (n_tokens, w.n_cols))
    check_array("out", out, np.float32, (n_tokens, w.n_rows))
    check_array("bias", bias, np.float32, (w.n_rows,), optional=True)
    plan = _plan(n_tokens, w, tile, n_splits, workspace, stream.n_sms)
    given_bias, sums, arrived = (out if bias is None else bias), out, out
    if plan.n_splits > 1 and workspace is not None:
        sums, arrived = workspace.sums, workspace.arrived
    forms = (plan.n_splits > 1, x_is_half, bias is not None, accumulate)
    kernel = _compile(w.type, plan.tile, *forms, plan.in_bands)
    highs, scales = (w.quants if plane is None else plane for plane in (w.highs, w.scales))
    stream.launch(
        kernel, plan.grid, plan.tile.n_threads,
        w.quants, highs, scales, x, given_bias, sums, arrived, out,
        np.int32(plan.n_whole), np.int32(plan.n_splits),
    )  # fmt: skip


class _Plan(NamedTuple):
    """How a product is launched: see gemm_parts.py."""

    tile: Tile
    in_bands: bool
    n_whole: int
    n_splits: int
    grid: tuple[int, int, int]


def _plan(
    n_tokens: int,
    w: Planes,
    tile: Tile | None,
    n_splits: int | None,
    workspace: Workspace | None,
    n_sms: int,
) -> _Plan:
    splits, is_asked = n_splits or 1, n_splits is not None
    if tile is None:
        tile, best = choose(w.type, n_tokens, w.n_rows, w.n_cols, n_sms)
        splits = n_splits or best
    n_tiles = tile.n_tiles(n_tokens, w.n_rows)
    is_alike = tile.n_tokens >= n_tokens or n_tokens > ALIKE_TOKENS
    if splits == 1 and n_tiles > block_slots(w.type, tile, n_sms) and is_alike:
        n_whole, splits = tail(tile, n_tiles, w.n_cols, n_sms)
        if splits > 1:
            splits = _fitting(splits, n_tiles - n_whole, tile, workspace, is_asked=False)
        return _Plan(tile, True, n_whole, splits, (n_whole + splits * (n_tiles - n_whole), 1, 1))
    if splits > 1:
        splits = _fitting(splits, n_tiles, tile, workspace, is_asked)
    return _Plan(tile, False, 0, splits, (*tile.grid(n_tokens, w.n_rows), splits))


def _fitting(
    n_splits: int, n_tiles: int, tile: Tile, workspace: Workspace | None, is_asked: bool
) -> int:
    """As many of the splits as the workspace has room for, of so many tiles; KernelContractError if
    they were asked for and it has not."""
    room = 0
    if workspace is not None and n_tiles <= MAX_TILES:
        check_array("workspace.sums", workspace.sums, np.float32, (None,))
        check_array("workspace.arrived", workspace.arrived, np.int32, (MAX_TILES,))
        room = int(workspace.sums.shape[0]) // (n_tiles * tile.n_outputs)
    if is_asked and room < n_splits:
        wanted = n_splits * n_tiles * tile.n_outputs
        raise KernelContractError(
            f"workspace: expected room for {wanted:,} sums in {n_tiles:,} tiles, got less"
        )
    return min(n_splits, max(room, 1))
