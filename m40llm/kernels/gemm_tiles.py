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

from numba import cuda, int32, uint32

from m40llm.kernels.contract import ceil_div
from m40llm.kernels.intrinsics import load_float4_shared
from m40llm.kernels.products import Columns, multiply_quarter
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
        return self.n_outputs // N_SUMS

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

    def n_tiles(self, n_tokens: int, n_rows: int) -> int:
        return math.prod(self.grid(n_tokens, n_rows))

    @property
    def n_outputs(self) -> int:
        """Elements of out, which a block that shares the tile leaves in a workspace."""
        return self.n_tokens * self.n_rows

    @property
    def registers(self) -> int:
        """16 warps on an SM; 12 where a thread has more under way."""
        return 128 if self.n_groups == 1 and self.x_quads + self.w_eights <= 4 else 168

    @property
    def n_buffers(self) -> int:
        """Of a group: a warp by itself needs no second one to spare a barrier."""
        return 2 if self.n_groups == 1 else 1

    @property
    def x_columns(self) -> Columns:
        """Where x's columns lie in a buffer, in bytes: lanes that store parts of four columns come
        to eight banks each."""
        return Columns(4 * self.n_tokens, gap=32, gap_columns=4)

    @property
    def w_columns(self) -> Columns:
        """W's, from `w_begin` on: lanes store parts of two columns, to sixteen banks each."""
        return Columns(4 * self.n_rows, gap=64, gap_columns=8)

    @property
    def w_begin(self) -> int:
        return self.x_columns.offset(BK)

    @property
    def buffer_bytes(self) -> int:
        """x's columns of a step, then W's."""
        return self.w_begin + self.w_columns.offset(BK)

    @property
    def group_bytes(self) -> int:
        return self.n_buffers * self.buffer_bytes

    @property
    def n_floats(self) -> int:
        """Shared memory: tiles; then the sums of half of the groups; then half of the results."""
        sums = self.n_groups // 2 * N_SUMS * self.group_threads
        results = self.n_tokens // 2 * (self.n_rows + PADDING)
        return max(self.n_groups * self.group_bytes // 4, sums, results)


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
def load_column_of(tile: Tile) -> Any:
    """load_column(pool, x_at, w_at, x, w): a thread's part of a column; pool counts bytes."""
    x_half, w_half = 2 * tile.n_tokens, 2 * tile.n_rows

    @cuda.jit(device=True, forceinline=True)
    def load_column(pool: Any, x_at: Any, w_at: Any, x: Any, w: Any) -> None:
        x[0], x[1], x[2], x[3] = load_float4_shared(pool, x_at)
        w[0], w[1], w[2], w[3] = load_float4_shared(pool, w_at)
        w[4], w[5], w[6], w[7] = load_float4_shared(pool, w_at + w_half)
        x[4], x[5], x[6], x[7] = load_float4_shared(pool, x_at + x_half)

    return load_column


@cache
def multiply_of(tile: Tile) -> Any:
    """multiply(pool, x_at, w_at, acc, x, w, quarter), see products.py: a quarter of a step."""
    return multiply_quarter(load_column_of(tile), 8, 8, tile.x_columns, tile.w_columns, 4)
