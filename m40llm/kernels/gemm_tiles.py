"""A block's part of a matrix product: 16 columns of x and W in shared memory, sums in registers.

    sums 8 x 8 a thread: two quads of tokens, half a tile apart, by two quads of rows

A step is 16 columns. In shared memory they are [column][token] and [column][row], so that a quad is
one load of 16 bytes. Such a load takes 4.2 cycles of an SM where all lanes want different words,
2.6 where neighbours want the same (H100): so lanes that differ in bit 0 have the same rows, and
lanes that differ in bit 1 the same tokens. 4 floats of padding leave the stores, of rows
transposed, two lanes to a bank. (An XOR swizzle frees these too, but its addresses cost more
instructions than they save.)
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from gguf import GGMLQuantizationType as GGMLType
from numba import cuda, float32, int32, int64, uint32, uint64

from m40llm.kernels.contract import ceil_div
from m40llm.kernels.dequantize import convert, fetch
from m40llm.kernels.intrinsics import (
    half2_to_float2,
    load_float4_readonly,
    load_float4_shared,
    load_uint2_readonly,
)
from m40llm.kernels.products import multiply_quarter
from m40llm.kernels.reduce import WARP_SIZE

BK: Final = 16  # columns of a step
PADDING: Final = 4  # floats after a column of a tile
N_SUMS: Final = 64  # of a thread


@dataclass(frozen=True)
class Tile:
    """What a block computes at a time: n_tokens x n_rows of out.

    n_groups   1: all threads share the steps. More: that many warps, each of which computes all of
               the tile from its own share of the columns; their sums are added up in the end
    """

    n_tokens: int
    n_rows: int
    n_groups: int = 1

    def __post_init__(self) -> None:
        n_threads = self.n_tokens * self.n_rows // N_SUMS
        assert self.n_tokens in (16, 32, 64, 128), self
        assert n_threads % WARP_SIZE == 0, self
        assert self.n_groups == 1 or n_threads == WARP_SIZE, self

    @property
    def group_threads(self) -> int:
        return self.n_tokens * self.n_rows // N_SUMS

    @property
    def n_threads(self) -> int:
        return self.n_groups * self.group_threads

    @property
    def x_quads(self) -> int:
        """Quads of x that a thread loads in a step."""
        return 4 * self.n_tokens // self.group_threads

    @property
    def w_eights(self) -> int:
        """Eights of weights that it loads."""
        return 2 * self.n_rows // self.group_threads

    def grid(self, n_tokens: int, n_rows: int) -> tuple[int, int]:
        """Tiles of an out of this size: along its rows, along its tokens."""
        return ceil_div(n_rows, self.n_rows), ceil_div(n_tokens, self.n_tokens)

    def shared_floats(self, n_splits: int, n_tokens: int, n_rows: int) -> int:
        """Of a workspace, where so many blocks share each tile of such an out."""
        return n_splits * math.prod(self.grid(n_tokens, n_rows)) * self.n_tokens * self.n_rows

    @property
    def registers(self) -> int:
        """16 warps on an SM; 12 of groups, whose threads have more weights under way."""
        return 168 if self.n_groups > 1 else 128

    @property
    def n_buffers(self) -> int:
        """Of a group: a warp by itself needs no second one to spare a barrier."""
        return 2 if self.n_groups == 1 else 1

    @property
    def x_floats(self) -> int:
        """Of a buffer."""
        return BK * (self.n_tokens + PADDING)

    @property
    def w_floats(self) -> int:
        return BK * (self.n_rows + PADDING)

    @property
    def group_floats(self) -> int:
        return self.n_buffers * (self.x_floats + self.w_floats)

    @property
    def n_floats(self) -> int:
        """Shared memory: tiles; then the sums of half of the groups; then half of the results."""
        sums = self.n_groups // 2 * N_SUMS * self.group_threads
        results = self.n_tokens // 2 * (self.n_rows + PADDING)
        return max(self.n_groups * self.group_floats, sums, results)


@cache
def sync_of(tile: Tile) -> Any:
    """sync(): of the threads that share a buffer."""
    is_block = tile.n_groups == 1

    @cuda.jit(device=True, forceinline=True)
    def sync() -> None:
        if is_block:
            cuda.syncthreads()
        else:
            cuda.syncwarp()

    return sync


@cache
def place_of(tile: Tile) -> Any:
    """place(t) -> (token, row): the first of thread t's, within the tile."""
    token_lanes = 2 if tile.n_tokens == 16 else 4
    row_lanes = WARP_SIZE // token_lanes
    token_warps = tile.n_tokens // 8 // token_lanes

    @cuda.jit(device=True, forceinline=True)
    def place(t: Any) -> Any:
        lane, warp = uint32(t & uint32(31)), uint32(t >> uint32(5))
        token = lane & uint32(1)
        if token_lanes == 4:
            token = uint32(token | (lane >> uint32(4)) << uint32(1))
        row = uint32(lane >> uint32(1)) & uint32(row_lanes - 1)
        token += uint32(warp % uint32(token_warps)) * uint32(token_lanes)
        row += uint32(warp // uint32(token_warps)) * uint32(row_lanes)
        return int32(token * uint32(4)), int32(row * uint32(4))

    return place


@cache
def load_x_of(tile: Tile, is_half: bool) -> Any:
    """load_x(x, quads_at, col, n_here, quads): the thread's quads of x, columns col to col + n_here
    of a step; zeros beyond. quads_at: where its rows begin, in quads; see x_rows_of."""
    n_quads = tile.x_quads

    @cuda.jit(device=True, forceinline=True)
    def load_x(x: Any, quads_at: Any, t: Any, col: Any, n_here: Any, quads: Any) -> None:
        mine = int32(uint32(t & uint32(3)) * uint32(4))
        for i in range(n_quads):
            x0, x1, x2, x3 = float32(0), float32(0), float32(0), float32(0)
            if mine < n_here:
                at = int64(uint32(quads_at[i] + (uint32(col) >> uint32(2)))) * 4
                if is_half:
                    low, high = load_uint2_readonly(x, at)
                    x0, x1 = half2_to_float2(low)
                    x2, x3 = half2_to_float2(high)
                else:
                    x0, x1, x2, x3 = load_float4_readonly(x, at)
            quads[i, 0], quads[i, 1], quads[i, 2], quads[i, 3] = x0, x1, x2, x3

    return load_x


@cache
def x_rows_of(tile: Tile) -> Any:
    """find_x_rows(first_token, n_tokens, n_cols, t, quads_at): rows beyond the last are the last
    one: computed, not stored."""
    n_quads, apart = tile.x_quads, tile.group_threads // 4

    @cuda.jit(device=True, forceinline=True)
    def find_x_rows(
        first_token: Any, n_tokens: Any, n_cols: Any, t: Any, quads_at: Any
    ) -> None:  # fmt: skip
        row_quads = uint32(uint32(n_cols) >> uint32(2))
        mine = min(uint32(t & uint32(3)), uint32(row_quads - uint32(1)))  # what is loaded in vain
        for i in range(n_quads):
            token = int32(first_token + int32((t >> uint32(2)) + uint32(i * apart)))
            token = min(token, int32(n_tokens - 1))
            quads_at[i] = uint32(uint32(token) * row_quads + mine)

    return find_x_rows


@cache
def load_w_of(type: GGMLType, tile: Tile) -> Any:
    """load_w(quants, highs, scales, rows, t, col, n_here, n_cols, raw): what the thread's eights of
    weights are made of, raw[i]; nothing beyond n_here."""
    fetch_weights, n_eights = fetch(type), tile.w_eights

    @cuda.jit(device=True, forceinline=True)
    def load_w(
        quants: Any, highs: Any, scales: Any, rows: Any, t: Any, col: Any, n_here: Any,
        n_cols: Any, raw: Any,
    ) -> None:  # fmt: skip
        mine = int32(uint32(t & uint32(1)) * uint32(8))
        one = cuda.local.array(8, uint32)
        for i in range(n_eights):
            for k in range(8):
                one[k] = uint32(0)
            if mine < n_here:
                inside = min(mine, int32(int32(n_cols - 4) & ~7))  # what is loaded in vain
                fetch_weights(quants, highs, scales, rows[i], int32(col + inside), n_cols, one)
            for k in range(8):
                raw[i, k] = one[k]

    return load_w


@cache
def store_tiles_of(type: GGMLType, tile: Tile) -> Any:
    """store_tiles(quads, raw, t, col, pool, x_at, w_at): what was loaded, into shared memory."""
    n_quads, n_eights = tile.x_quads, tile.w_eights
    x_pitch, w_pitch = tile.n_tokens + PADDING, tile.n_rows + PADDING
    x_apart, w_apart = tile.group_threads // 4, tile.group_threads // 2
    convert_weights = convert(type)

    @cuda.jit(device=True, forceinline=True)
    def store_tiles(
        quads: Any, raw: Any, t: Any, col: Any, pool: Any, x_at: Any, w_at: Any
    ) -> None:
        weights, one = cuda.local.array(8, float32), cuda.local.array(8, uint32)
        x_first = uint64(x_at + (t & uint32(3)) * uint32(4 * x_pitch) + (t >> uint32(2)))
        for i in range(n_quads):
            for k in range(4):
                pool[uint64(x_first + uint64(k * x_pitch + i * x_apart))] = quads[i, k]
        w_first = uint64(w_at + (t & uint32(1)) * uint32(8 * w_pitch) + (t >> uint32(1)))
        mine = int32(uint32(t & uint32(1)) * uint32(8))
        for i in range(n_eights):
            for k in range(8):
                one[k] = raw[i, k]
            convert_weights(one, int32(col + mine), weights)
            for k in range(8):
                pool[uint64(w_first + uint64(k * w_pitch + i * w_apart))] = weights[k]

    return store_tiles


@cache
def load_column_of(tile: Tile) -> Any:
    """load_column(pool, x_at, w_at, x, w): a thread's part of a column."""
    x_half, w_half = tile.n_tokens // 2, tile.n_rows // 2

    @cuda.jit(device=True, forceinline=True)
    def load_column(pool: Any, x_at: Any, w_at: Any, x: Any, w: Any) -> None:
        x[0], x[1], x[2], x[3] = load_float4_shared(pool, x_at)
        w[0], w[1], w[2], w[3] = load_float4_shared(pool, w_at)
        w[4], w[5], w[6], w[7] = load_float4_shared(pool, w_at + w_half)
        x[4], x[5], x[6], x[7] = load_float4_shared(pool, x_at + x_half)

    return load_column


@cache
def multiply_of(tile: Tile) -> Any:
    """multiply(pool, x_at, w_at, acc, x, w, quarter), see products.py: quarters of a step."""
    pitches = (tile.n_tokens + PADDING, tile.n_rows + PADDING)
    return multiply_quarter(load_column_of(tile), 8, 8, *pitches, 4)
