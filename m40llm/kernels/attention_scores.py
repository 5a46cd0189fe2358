"""First step of attention_prefill on a tile: score += q . k, a product of 64 rows and BN keys.

Names and the threads' places are those of attention_tiles.py.
"""

from functools import cache
from typing import Any

from numba import cuda, float32, int32, int64, uint32, uint64

from m40llm.kernels.attention_eights import eight_of
from m40llm.kernels.attention_tiles import (
    BK,
    BM,
    COLUMNS,
    HALF_KEYS,
    ROWS,
    TM,
    key_columns,
    key_halves,
    load_rows,
    place,
    tile_keys,
)
from m40llm.kernels.intrinsics import load_float4_readonly, load_float4_shared
from m40llm.kernels.products import multiply_quarter


@cache
def _load_scores_column(n_halves: int) -> Any:
    """A thread's rows of q, and its keys."""

    @cuda.jit(device=True, forceinline=True)
    def load_column(pool: Any, q_at: Any, k_at: Any, rows: Any, keys: Any) -> None:
        for half in range(n_halves):
            j = 4 * half
            keys[j], keys[j + 1], keys[j + 2], keys[j + 3] = load_float4_shared(
                pool, k_at + HALF_KEYS * half
            )
        load_rows(pool, q_at, rows)

    return load_column


@cache
def load_step(head_dim: int, is_q8: bool) -> Any:
    """load(q, q_at, k, k_scales, k_at, d, quads, raw): 16 elements of q and K from d on, the
    thread's share: quads of rows t // 4 and 32 + that, eights of keys t // 2 and 64 + that."""
    n_halves, load_eight = key_halves(head_dim), eight_of(is_q8).load

    @cuda.jit(device=True, forceinline=True)
    def load(
        q: Any, q_at: Any, k_cache: Any, k_scales: Any, k_at: Any, d: Any, quads: Any, raw: Any
    ) -> None:
        for i in range(2):
            quads[i, 0], quads[i, 1], quads[i, 2], quads[i, 3] = load_float4_readonly(
                q, (int64(q_at[i]) << 2) + d
            )
        for i in range(n_halves):
            load_eight(k_cache, k_scales, k_at[i] + d, raw, i)

    return load


@cache
def store_step(head_dim: int, is_q8: bool) -> Any:
    """store(quads, raw, pool, q_at, k_at): what was loaded, to the buffers that begin there."""
    pair, scale = eight_of(is_q8).pair, eight_of(is_q8).scale
    n_halves, of_k = key_halves(head_dim), key_columns(head_dim)
    q_quad, k_pitch, k_eight = ROWS.offset(4), of_k.pitch, of_k.offset(8)

    @cuda.jit(device=True, forceinline=True)
    def store(quads: Any, raw: Any, pool: Any, q_at: Any, k_at: Any) -> None:
        t = uint32(cuda.threadIdx.x)
        q_first = uint64(q_at + (t & uint32(3)) * uint32(q_quad) + (t >> uint32(2)))
        for i in range(2):
            for k in range(4):
                pool[uint64(q_first + uint64(k * BM + i * (BM // 2)))] = quads[i, k]
        k_first = uint64(k_at + (t & uint32(1)) * uint32(k_eight) + (t >> uint32(1)))
        for i in range(n_halves):
            for k in range(4):
                low, high = pair(raw, i, k)
                if is_q8:
                    low *= scale(raw, i)
                    high *= scale(raw, i)
                pool[uint64(k_first + uint64(2 * k * k_pitch + i * HALF_KEYS))] = low
                pool[uint64(k_first + uint64((2 * k + 1) * k_pitch + i * HALF_KEYS))] = high

    return store


@cache
def add_scores(head_dim: int, is_q8: bool) -> Any:
    """add_scores(score, pool, q, q_at, k_cache, k_scales, k_at): score += q . k, for a tile.

    q_at   uint32[2]: where the rows begin that the thread loads, in quads
    k_at   int64[BN / 64]: where the keys begin
    """
    n_halves, n_steps = key_halves(head_dim), head_dim // BK
    n_keys = tile_keys(head_dim) // COLUMNS
    q_floats, k_floats = ROWS.offset(BK), key_columns(head_dim).offset(BK)
    k_begin = 2 * q_floats
    load, store = load_step(head_dim, is_q8), store_step(head_dim, is_q8)
    n_words = eight_of(is_q8).n_words
    load_column = _load_scores_column(n_halves)
    multiply = multiply_quarter(load_column, TM, n_keys, ROWS, key_columns(head_dim), BK // 4)

    @cuda.jit(device=True, forceinline=True)
    def add(
        score: Any, pool: Any, q: Any, q_at: Any, k_cache: Any, k_scales: Any, k_at: Any
    ) -> None:
        quads = cuda.local.array((2, 4), float32)
        raw = cuda.local.array((n_halves, n_words), uint32)
        rows, keys = cuda.local.array(TM, float32), cuda.local.array(n_keys, float32)
        row, column = place()
        load(q, q_at, k_cache, k_scales, k_at, 0, quads, raw)
        store(quads, raw, pool, uint32(0), uint32(k_begin))
        cuda.syncthreads()
        q_buffer, k_buffer, step = int32(0), int32(k_begin), int32(0)
        while step < n_steps:
            step = int32(step + 1)
            d = int32(BK * min(step, int32(n_steps - 1)))  # the last one once more, in vain
            load(q, q_at, k_cache, k_scales, k_at, d, quads, raw)
            q_mine, k_mine = int64(q_buffer + row), int64(k_buffer + 4 * column)
            load_column(pool, q_mine, k_mine, rows, keys)
            multiply(pool, q_mine, k_mine, score, rows, keys, 0)
            multiply(pool, q_mine, k_mine, score, rows, keys, 1)
            multiply(pool, q_mine, k_mine, score, rows, keys, 2)
            q_buffer = int32(q_floats - q_buffer)
            k_buffer = int32(2 * k_begin + k_floats - k_buffer)
            store(quads, raw, pool, uint32(q_buffer), uint32(k_buffer))
            multiply(pool, q_mine, k_mine, score, rows, keys, 3)
            cuda.syncthreads()

    return add
