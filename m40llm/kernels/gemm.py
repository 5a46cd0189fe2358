"""Matrix product: out[m, n] = sum_k x[m, k] * W[n, k]  (+ bias[n]) (+ out[m, n] as it was).

x      float32 or float16[n_tokens, n_cols]   any n_tokens >= 1; less than 4 GiB
W      Planes[n_rows, n_cols]                 F32, F16 or quantised; any n_rows; n_cols as planes.py
                                              has it (multiples of the block; F16 8, F32 4)
bias   float32[n_rows]
out    float32[n_tokens, n_rows]              aliases nothing

grid     (ceil(n_rows / tile.n_rows), ceil(n_tokens / tile.n_tokens), n_splits)
FLOPs    2 * n_tokens * n_rows * n_cols, in FP32 (compute-bound from about 16 tokens on)
shared   2 buffers of 16 columns of both tiles (gemm_tiles.py): 32 KiB for 128 x 128
sm_52    registers at most 128, 16 warps on an SM (25 %); 168 (12 warps) for tiles of groups and of
         few threads and for types with high bits of quants, 208 (8 warps) for both together
         FFMA share of the loop, all else in it counted: F16 128 x 128 90.0 %, 64 x 128 and
         64 x 64 87 %, 32 x 64 84 %, 16 x 128 79 %; 128 x 128 of Q8_0 87 %, Q4_0 87 %, Q4_K 86 %

While a block multiplies one step of 16 columns from shared memory, 8 x 8 sums a thread, its loads
of the next are under way; weights are dequantised on the way into shared memory. The columns that
are no full step come first, so that the loop has no bounds. Where out has too few tiles for the
card, blocks share the columns of a tile, and the last of them adds up what all have left in a
workspace (gemm_sums.py). Which tile, and how many blocks share one, says gemm_choice.py.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
from gguf import GGMLQuantizationType as GGMLType
from numba import cuda, float32, int32, uint32

from m40llm.errors import KernelContractError
from m40llm.kernels.contract import Kernel, Launcher, ceil_div, check_array
from m40llm.kernels.gemm_choice import choose
from m40llm.kernels.gemm_steps import add_steps_of
from m40llm.kernels.gemm_sums import add_groups_of, add_splits_of, store_sums_of
from m40llm.kernels.gemm_tiles import Tile, place_of
from m40llm.kernels.intrinsics import as_bytes
from m40llm.kernels.planes import Planes, check_planes
from m40llm.kernels.unpack import LANES

MAX_X_BYTES: Final = 2**32  # offsets of x have 32 bits
BAND: Final = 8  # tiles along the tokens that blocks take in turn, where there are many
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


def _registers(type: GGMLType, tile: Tile) -> int:
    """More than the tile's where quants, and what scales them, would spill."""
    if LANES[type].n_highs:
        return 208 if tile.n_groups > 1 else 168
    if type == GGMLType.Q4_K and tile.w_eights > 1:
        return 208 if tile.w_eights > 4 else 168
    return tile.registers


@cache
def corner_of(tile: Tile, in_bands: bool) -> tuple[Any, Any]:
    """(find_corner(kept), corner_again(kept)) -> the block's first token and row.

    in_bands   blocks that run at the same time have up to BAND tiles of tokens and as few of rows
               as that leaves, and share what they load. What took a division to find is kept in
               shared memory: the loop in between needs all registers
    """
    tile_tokens, tile_rows = tile.n_tokens, tile.n_rows

    @cuda.jit(device=True, forceinline=True)
    def corner(kept: Any) -> Any:
        return int32(int32(cuda.blockIdx.y) * tile_tokens), int32(
            int32(cuda.blockIdx.x) * tile_rows
        )

    @cuda.jit(device=True, forceinline=True)
    def kept_corner(kept: Any) -> Any:
        return kept[0], kept[1]

    @cuda.jit(device=True, forceinline=True)
    def find_in_band(kept: Any) -> Any:
        if cuda.threadIdx.x == 0:
            n_high, n_wide = uint32(cuda.gridDim.y), uint32(cuda.gridDim.x)
            block = uint32(cuda.blockIdx.y) * n_wide + uint32(cuda.blockIdx.x)
            of_band = uint32(uint32(BAND) * n_wide)
            first = uint32(uint32(block // of_band) * uint32(BAND))
            high = min(uint32(BAND), uint32(n_high - first))
            inside = uint32(block % of_band)
            kept[0] = int32(uint32(first + inside % high) * uint32(tile_tokens))
            kept[1] = int32(uint32(inside // high) * uint32(tile_rows))
        cuda.syncthreads()
        return kept[0], kept[1]

    return (find_in_band, kept_corner) if in_bands else (corner, corner)


@cache
def _compile(
    type: GGMLType, tile: Tile, is_split: bool, x_is_half: bool, has_bias: bool, accumulate: bool,
    in_bands: bool = False,
) -> Kernel:  # fmt: skip
    n_threads, n_groups, n_floats = tile.group_threads, tile.n_groups, tile.n_floats
    tile_tokens, tile_rows, place = tile.n_tokens, tile.n_rows, place_of(tile)
    add_steps, add_groups = add_steps_of(type, tile, x_is_half), add_groups_of(tile)
    add_splits, store_sums = add_splits_of(tile), store_sums_of(tile, has_bias, accumulate)
    find_corner, corner_again = corner_of(tile, in_bands)

    def gemm(
        quants: Any, highs: Any, scales: Any, x: Any, bias: Any, sums: Any, arrived: Any, out: Any
    ) -> None:
        pool = cuda.shared.array(n_floats, float32, alignment=16)
        ticket, kept = cuda.shared.array(1, int32), cuda.shared.array(2, int32)
        acc = cuda.local.array((8, 8), float32)
        for i in range(8):
            for j in range(8):
                acc[i, j] = float32(0)
        thread = uint32(cuda.threadIdx.x)
        group, t = int32(thread // uint32(n_threads)), uint32(thread % uint32(n_threads))
        corner = find_corner(kept)
        token_at, row_at = place(t)
        add_steps(
            quants, highs, scales, x, int32(out.shape[0]), int32(out.shape[1]),
            corner[0], corner[1], as_bytes(pool), group, t, token_at, row_at, acc,
        )  # fmt: skip
        if n_groups > 1:
            add_groups(pool, group, t, acc)
        if is_split and not add_splits(sums, arrived, ticket, group == 0, t, acc):
            return
        corner = corner_again(kept)
        store_sums(acc, pool, group == 0, token_at, row_at, corner[0], corner[1], bias, out)

    return Kernel(gemm, registers=_registers(type, tile))


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
    n_splits        blocks that share a tile; None: as it says, or 1 if a tile is given
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
    splits = n_splits or 1
    if tile is None:
        tile, best = choose(n_tokens, w.n_rows, w.n_cols, stream.n_sms)
        splits = n_splits or best
    if splits > 1:
        n_tiles = tile.n_tiles(n_tokens, w.n_rows)
        splits = _fitting(splits, n_tiles, tile, workspace, n_splits is not None)
    given_bias, sums, arrived = (out if bias is None else bias), out, out
    if splits > 1 and workspace is not None:
        sums, arrived = workspace.sums, workspace.arrived
    forms = (splits > 1, x_is_half, bias is not None, accumulate)
    in_bands = ceil_div(n_tokens, tile.n_tokens) >= 2 * BAND  # with fewer, it takes what it gives
    kernel = _compile(w.type, tile, *forms, in_bands)
    highs, scales = (w.quants if plane is None else plane for plane in (w.highs, w.scales))
    stream.launch(
        kernel, (*tile.grid(n_tokens, w.n_rows), splits), tile.n_threads,
        w.quants, highs, scales, x, given_bias, sums, arrived, out,
    )  # fmt: skip


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
