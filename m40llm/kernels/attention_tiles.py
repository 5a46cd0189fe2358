"""How a block of attention_prefill divides a tile of 64 rows x BN keys among its threads.

attention_scores.py makes its scores, attention_values.py weighs V with them; between them, here,
scores become weights.

128 threads: 8 groups of rows by 16 columns. A thread has the rows 4 * group, ... and 32 + those,
and holds

score     float32[8, BN / 16]         of its rows with keys 4 * column, ... of each 64
highest   float32[8]                  of each row, the same in its 16 threads
total     float32[8]                  weights of this thread's keys only
mixed     float32[8, head_dim / 16]   weights x V: 4 columns of each 64, then 2 of 32 or 1 of 16

pool      shared float32[pool_size]   first two buffers of q and K, 16 elements of rows and keys;
                                      then weights of 64 keys, and two buffers of V
row_last  shared int32[BM]            the last key that a row sees; -1 for a row that sees none

While a buffer is multiplied, the other one is filled. Lanes that differ in bit 0 have the same
columns, and the others of a column's 16 the same rows: see gemm_tiles.py for what that is good for.

A scalar's index is uint64: Numba looks whether a signed one is negative, which costs an address in
registers for every element, where one address and a constant offset each would do.
"""

import math
from functools import cache
from typing import Any, Final

from numba import cuda, int32, uint32, uint64

from m40llm.kernels.attention_common import HALVES_PER_LOAD, NEGATIVE_INFINITY
from m40llm.kernels.intrinsics import load_float4_shared, store_float4_shared
from m40llm.kernels.products import Columns
from m40llm.kernels.reduce import FULL_MASK

BM: Final = 64  # rows of a tile: tokens x heads of a group
BK: Final = 16  # elements of a step over head_dim
TM: Final = 8  # rows of a thread
COLUMNS: Final = 16  # threads that share a row
N_THREADS: Final = BM // TM * COLUMNS
HALF_KEYS: Final = 64  # keys whose weights are in shared memory at a time
ROWS: Final = Columns(BM, gap=8, gap_columns=4)  # q and weights in shared memory, in floats
FOUR_ROWS: Final = ROWS.offset(4)
WEIGHTS_SIZE: Final = ROWS.offset(HALF_KEYS)


def key_halves(head_dim: int) -> int:
    """64 keys each: as many as a thread's registers allow."""
    return 2 if head_dim <= 128 else 1


def tile_keys(head_dim: int) -> int:
    """BN: keys of a tile."""
    return HALF_KEYS * key_halves(head_dim)


def key_columns(head_dim: int) -> Columns:
    """Where K's elements lie in shared memory."""
    return Columns(tile_keys(head_dim), gap=16, gap_columns=8)


def value_keys(head_dim: int) -> int:
    """Keys of a buffer of V, as shared memory and registers allow."""
    return 16 if head_dim <= 128 else 4


def value_loads(head_dim: int) -> int:
    """Of 16 bytes, that a thread makes for a buffer of V."""
    return -(-value_keys(head_dim) * head_dim // (HALVES_PER_LOAD * N_THREADS))


def pool_size(head_dim: int) -> int:
    """Floats of `pool`."""
    scores = 2 * (ROWS.offset(BK) + key_columns(head_dim).offset(BK))
    return max(scores, WEIGHTS_SIZE + 2 * value_keys(head_dim) * head_dim)


@cuda.jit(device=True, forceinline=True)
def place() -> Any:
    """(row, column) of the thread: its first row, and which of the 16 it is."""
    lane, warp = uint32(cuda.threadIdx.x & 31), uint32(cuda.threadIdx.x >> 5)
    return int32(uint32(4) * (uint32(2) * warp + (lane & uint32(1)))), int32(lane >> uint32(1))


@cuda.jit(device=True, forceinline=True)
def row_of(row: Any, i: Any) -> Any:
    """Row i of the 8 of a thread whose first one is `row`."""
    return row + (i & 3) + (i >> 2) * (BM // 2)


@cuda.jit(device=True, forceinline=True)
def load_rows(pool: Any, at: Any, rows: Any) -> None:
    rows[0], rows[1], rows[2], rows[3] = load_float4_shared(pool, at)
    rows[4], rows[5], rows[6], rows[7] = load_float4_shared(pool, at + BM // 2)


@cache
def row_sum_and_max() -> tuple[Any, Any]:
    """Reductions over the 16 threads that share a row: all lanes that are odd, or even."""

    @cuda.jit(device=True, forceinline=True)
    def row_sum(value: Any) -> Any:
        value += cuda.shfl_xor_sync(FULL_MASK, value, 16)
        value += cuda.shfl_xor_sync(FULL_MASK, value, 8)
        value += cuda.shfl_xor_sync(FULL_MASK, value, 4)
        value += cuda.shfl_xor_sync(FULL_MASK, value, 2)
        return value

    @cuda.jit(device=True, forceinline=True)
    def row_max(value: Any) -> Any:
        value = max(value, cuda.shfl_xor_sync(FULL_MASK, value, 16))
        value = max(value, cuda.shfl_xor_sync(FULL_MASK, value, 8))
        value = max(value, cuda.shfl_xor_sync(FULL_MASK, value, 4))
        return max(value, cuda.shfl_xor_sync(FULL_MASK, value, 2))

    return row_sum, row_max


@cache
def weigh(head_dim: int, has_softcap: bool) -> Any:
    """weigh(...): dot products of a tile become weights; sums shrink to the new maximum.

    is_edge: whether there may be keys in the tile that a row does not see.
    """
    n_keys, td = tile_keys(head_dim) // COLUMNS, head_dim // COLUMNS
    _, row_max = row_sum_and_max()

    @cuda.jit(device=True, forceinline=True)
    def weigh_tile(
        score: Any, row_last: Any, first_key: Any, is_edge: Any, window: Any, inner: Any,
        outer: Any, highest: Any, total: Any, mixed: Any,
    ) -> None:  # fmt: skip
        row, column = place()
        for i in range(TM):
            for j in range(n_keys):
                score[i, j] *= inner
                if has_softcap:
                    score[i, j] = outer * math.tanh(score[i, j])
        if is_edge:
            for i in range(TM):
                last = row_last[uint64(row_of(row, i))]
                for j in range(n_keys):
                    key = first_key + 4 * column + (j & 3) + (j >> 2) * HALF_KEYS
                    if key > last or key <= last - window:
                        score[i, j] = NEGATIVE_INFINITY
        for i in range(TM):
            top = highest[i]
            for j in range(n_keys):
                top = max(top, score[i, j])
            top = row_max(top)
            shrink = math.exp2(highest[i] - top)
            highest[i] = top
            total[i] *= shrink
            for d in range(td):
                mixed[i, d] *= shrink
            for j in range(n_keys):
                score[i, j] = math.exp2(score[i, j] - top)
                total[i] += score[i, j]

    return weigh_tile


@cuda.jit(device=True, forceinline=True)
def put_weights(score: Any, half: Any, pool: Any) -> None:
    """The tile's weights of 64 keys, to the front of the pool, [key][row]."""
    row, column = place()
    for j in range(4):
        at, k = column * FOUR_ROWS + j * BM + row, 4 * half + j
        store_float4_shared(pool, at, score[0, k], score[1, k], score[2, k], score[3, k])
        store_float4_shared(
            pool, at + BM // 2, score[4, k], score[5, k], score[6, k], score[7, k]
        )  # fmt: skip
