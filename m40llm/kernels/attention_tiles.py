"""The steps of attention_prefill on a tile of 64 rows x 64 keys, as device functions of a block.

A thread is row group `thread // 16` (rows TM * group, ...) and column `thread % 16`. It holds

score     float32[TM, TN]             of its rows with keys TN * column, ...
highest   float32[TM]                 of each row, the same in its 16 threads
total     float32[TM]                 weights of this thread's keys only
mixed     float32[TM, head_dim / 16]  weights x V: 4 columns of each 64, then 2 of 32 or 1 of 16

stage     shared float32[stage_size]  a chunk of q and K, transposed, or of V
weights   shared float32[BN * STRIDE] key by key
row_last  shared int32[BM]            the last key that a row sees; -1 for a row that sees none

A scalar's index is uint64: Numba looks whether a signed one is negative, which costs an address in
registers for every element, where one address and a constant offset each would do.
"""

import math
from functools import cache
from typing import Any, Final

from numba import cuda, float32, int64, uint64

from m40llm.kernels.attention_common import HALVES_PER_LOAD, NEGATIVE_INFINITY
from m40llm.kernels.intrinsics import (
    half2_to_float2,
    load_float2_shared,
    load_float4,
    load_float4_shared,
    load_uint4_readonly,
    store_float4_shared,
)
from m40llm.kernels.reduce import FULL_MASK

BM: Final = 64  # rows of a tile: tokens x heads of a group
BN: Final = 64  # keys of a tile
TN: Final = 4  # keys of a thread
COLUMNS: Final = BN // TN  # threads that share a row
STRIDE: Final = BM + 4  # of a transposed tile: 16-byte aligned, and banks apart
V_KEYS: Final = 16  # keys of a chunk of V


def thread_rows(head_dim: int) -> int:
    """TM: rows of a thread, as its registers allow."""
    return 8 if head_dim <= 128 else 4


def thread_count(head_dim: int) -> int:
    """Threads of a block."""
    return BM // thread_rows(head_dim) * COLUMNS


def chunk_width(head_dim: int) -> int:
    """Elements of q and K that are staged at a time: 8 a thread."""
    return HALVES_PER_LOAD * thread_count(head_dim) // BM


def stage_size(head_dim: int) -> int:
    """Floats of `stage`: a chunk of q and one of K, or one of V."""
    return max(2 * chunk_width(head_dim) * STRIDE, V_KEYS * head_dim)


@cache
def add_scores(head_dim: int) -> Any:
    """add_scores(score, stage, q, q_at, k, k_at, inner): score += inner * q . k, for a tile.

    A thread loads 8 elements of row and key `thread % 64`: q_at and k_at say where they begin.
    """
    tm, d_chunk = thread_rows(head_dim), chunk_width(head_dim)
    k_stage = d_chunk * STRIDE  # where the chunk of K begins

    @cuda.jit(device=True, forceinline=True)
    def add(score: Any, stage: Any, q: Any, q_at: Any, k_cache: Any, k_at: Any, inner: Any) -> None:
        rows, keys = cuda.local.array(tm, float32), cuda.local.array(TN, float32)
        row, column = cuda.threadIdx.x // COLUMNS * tm, cuda.threadIdx.x % COLUMNS * TN
        to_column = k_stage + column - row
        put = cuda.threadIdx.x // BM * (HALVES_PER_LOAD * STRIDE) + cuda.threadIdx.x % BM
        for first_d in range(0, head_dim, d_chunk):
            halves = load_uint4_readonly(k_cache, k_at + first_d)
            q_low = load_float4(q, q_at + first_d)
            q_high = load_float4(q, q_at + first_d + 4)
            cuda.syncthreads()
            for i in range(4):
                low, high = half2_to_float2(halves[i])
                stage[uint64(k_stage + put + 2 * i * STRIDE)] = low
                stage[uint64(k_stage + put + (2 * i + 1) * STRIDE)] = high
                stage[uint64(put + i * STRIDE)] = inner * q_low[i]
                stage[uint64(put + (i + 4) * STRIDE)] = inner * q_high[i]
            cuda.syncthreads()
            at = row
            while at < row + k_stage:
                for i in range(0, tm, 4):
                    rows[i], rows[i + 1], rows[i + 2], rows[i + 3] = load_float4_shared(
                        stage, at + i
                    )
                keys[0], keys[1], keys[2], keys[3] = load_float4_shared(stage, at + to_column)
                for i in range(tm):
                    for j in range(TN):
                        score[i, j] += rows[i] * keys[j]
                at += STRIDE

    return add


@cache
def row_sum_and_max() -> tuple[Any, Any]:
    """Reductions over the 16 threads that share a row."""

    @cuda.jit(device=True, forceinline=True)
    def row_sum(value: Any) -> Any:
        value += cuda.shfl_xor_sync(FULL_MASK, value, 8)
        value += cuda.shfl_xor_sync(FULL_MASK, value, 4)
        value += cuda.shfl_xor_sync(FULL_MASK, value, 2)
        value += cuda.shfl_xor_sync(FULL_MASK, value, 1)
        return value

    @cuda.jit(device=True, forceinline=True)
    def row_max(value: Any) -> Any:
        value = max(value, cuda.shfl_xor_sync(FULL_MASK, value, 8))
        value = max(value, cuda.shfl_xor_sync(FULL_MASK, value, 4))
        value = max(value, cuda.shfl_xor_sync(FULL_MASK, value, 2))
        return max(value, cuda.shfl_xor_sync(FULL_MASK, value, 1))

    return row_sum, row_max


@cache
def weigh(head_dim: int, has_softcap: bool) -> Any:
    """weigh(...): scores of a tile become weights, in shared memory; sums shrink to the new max."""
    tm, td = thread_rows(head_dim), head_dim // COLUMNS
    _, row_max = row_sum_and_max()

    @cuda.jit(device=True, forceinline=True)
    def weigh_tile(
        score: Any, row_last: Any, first_key: Any, window: Any, outer: Any,
        highest: Any, total: Any, mixed: Any, weights: Any,
    ) -> None:  # fmt: skip
        row, column = cuda.threadIdx.x // COLUMNS * tm, cuda.threadIdx.x % COLUMNS * TN
        for i in range(tm):
            last = row_last[uint64(row + i)]
            top = highest[i]
            for j in range(TN):
                if has_softcap:
                    score[i, j] = outer * math.tanh(score[i, j])
                key = first_key + column + j
                if key > last or key <= last - window:
                    score[i, j] = NEGATIVE_INFINITY
                top = max(top, score[i, j])
            top = row_max(top)
            shrink = math.exp2(highest[i] - top)
            highest[i] = top
            total[i] *= shrink
            for d in range(td):
                mixed[i, d] *= shrink
            for j in range(TN):
                score[i, j] = math.exp2(score[i, j] - top)
                total[i] += score[i, j]
        for j in range(TN):
            for i in range(0, tm, 4):
                store_float4_shared(
                    weights, (column + j) * STRIDE + row + i,
                    score[i, j], score[i + 1, j], score[i + 2, j], score[i + 3, j],
                )  # fmt: skip

    return weigh_tile


@cache
def add_values(head_dim: int) -> Any:
    """add_values(weights, stage, v, base, first_key, last_key, mixed): mixed += weights x V.

    Its columns are such that the threads of a row read side by side.
    """
    tm, td = thread_rows(head_dim), head_dim // COLUMNS
    n_threads = thread_count(head_dim)
    n_quads, rest = head_dim // 64, head_dim % 64 // COLUMNS
    loads_a_key = head_dim // HALVES_PER_LOAD

    @cuda.jit(device=True, forceinline=True)
    def add(
        weights: Any, stage: Any, v_cache: Any, base: Any, first_key: Any, last_key: Any, mixed: Any
    ) -> None:
        rows = cuda.local.array(tm, float32)
        values = cuda.local.array(td, float32)
        row, column = cuda.threadIdx.x // COLUMNS * tm, cuda.threadIdx.x % COLUMNS
        for chunk in range(0, BN, V_KEYS):
            cuda.syncthreads()
            for load in range(cuda.threadIdx.x, V_KEYS * loads_a_key, n_threads):
                key = min(first_key + chunk + load // loads_a_key, last_key)
                d = load % loads_a_key * HALVES_PER_LOAD
                halves = load_uint4_readonly(v_cache, base + int64(key) * head_dim + d)
                a, b = half2_to_float2(halves[0])
                e, f = half2_to_float2(halves[1])
                store_float4_shared(stage, load * HALVES_PER_LOAD, a, b, e, f)
                a, b = half2_to_float2(halves[2])
                e, f = half2_to_float2(halves[3])
                store_float4_shared(stage, load * HALVES_PER_LOAD + 4, a, b, e, f)
            cuda.syncthreads()
            at, weights_at = 0, chunk * STRIDE + row
            while at < V_KEYS * head_dim:
                for i in range(0, tm, 4):
                    rows[i], rows[i + 1], rows[i + 2], rows[i + 3] = load_float4_shared(
                        weights, weights_at + i
                    )
                for quad in range(n_quads):
                    d = 4 * quad
                    values[d], values[d + 1], values[d + 2], values[d + 3] = load_float4_shared(
                        stage, at + 64 * quad + 4 * column
                    )
                if rest == 2:
                    values[4 * n_quads], values[4 * n_quads + 1] = load_float2_shared(
                        stage, at + 64 * n_quads + 2 * column
                    )
                if rest == 1:
                    values[4 * n_quads] = stage[uint64(at + 64 * n_quads + column)]
                for i in range(tm):
                    for d in range(td):
                        mixed[i, d] += rows[i] * values[d]
                at += head_dim
                weights_at += STRIDE

    return add
