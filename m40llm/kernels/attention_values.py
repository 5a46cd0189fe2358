"""Last step of attention_prefill on a tile: mixed += weights x V, of 64 keys at a time.

Names and the threads' places are those of attention_tiles.py.
"""

from functools import cache
from typing import Any

from numba import cuda, float32, int32, int64, uint32, uint64

from m40llm.kernels.attention_common import HALVES_PER_LOAD
from m40llm.kernels.attention_eights import eight_of
from m40llm.kernels.attention_tiles import (
    COLUMNS,
    HALF_KEYS,
    N_THREADS,
    ROWS,
    TM,
    WEIGHTS_SIZE,
    load_rows,
    place,
    value_keys,
    value_loads,
)
from m40llm.kernels.intrinsics import load_float2_shared, load_float4_shared, store_float4_shared
from m40llm.kernels.products import Columns, multiply_quarter


@cache
def _load_values_column(head_dim: int) -> Any:
    """A thread's rows of weights, and its columns of V: so that threads of a row read side by
    side. v_at is where the key begins."""
    n_quads, rest = head_dim // 64, head_dim % 64 // COLUMNS

    @cuda.jit(device=True, forceinline=True)
    def load_column(pool: Any, weights_at: Any, v_at: Any, rows: Any, values: Any) -> None:
        _, column = place()
        for quad in range(n_quads):
            d = 4 * quad
            values[d], values[d + 1], values[d + 2], values[d + 3] = load_float4_shared(
                pool, v_at + 64 * quad + 4 * column
            )
        d = 4 * n_quads
        if rest == 2:
            values[d], values[d + 1] = load_float2_shared(pool, v_at + 64 * n_quads + 2 * column)
        if rest == 1:
            values[d] = pool[uint64(v_at + 64 * n_quads + column)]
        load_rows(pool, weights_at, rows)

    return load_column


@cache
def load_values(head_dim: int, is_q8: bool) -> Any:
    """load(v_cache, v_scales, base, key, last_key, raw): the thread's eights of a buffer of V from
    key on."""
    n_loads, loads_a_key = value_loads(head_dim), head_dim // HALVES_PER_LOAD
    load_eight = eight_of(is_q8).load

    @cuda.jit(device=True, forceinline=True)
    def load(v_cache: Any, v_scales: Any, base: Any, key: Any, last_key: Any, raw: Any) -> None:
        for i in range(n_loads):
            eight = uint32(cuda.threadIdx.x) + uint32(i * N_THREADS)
            mine = min(key + int32(eight // uint32(loads_a_key)), last_key)
            d = int64(eight % uint32(loads_a_key) * uint32(HALVES_PER_LOAD))
            load_eight(v_cache, v_scales, base + int64(mine) * head_dim + d, raw, i)

    return load


@cache
def _four_values(is_q8: bool) -> Any:
    """four(raw, i, word): elements 2 word to 2 word + 3 of an eight."""
    pair, scale = eight_of(is_q8).pair, eight_of(is_q8).scale

    @cuda.jit(device=True, forceinline=True)
    def four(raw: Any, i: Any, word: Any) -> Any:
        a, b = pair(raw, i, word)
        c, d = pair(raw, i, word + 1)
        if is_q8:
            factor = scale(raw, i)
            return a * factor, b * factor, c * factor, d * factor
        return a, b, c, d

    return four


@cache
def store_values(head_dim: int, is_q8: bool) -> Any:
    """store(raw, pool, at): what was loaded, to the buffer that begins there."""
    four = _four_values(is_q8)
    n_loads = value_loads(head_dim)
    n_eights = value_keys(head_dim) * head_dim // HALVES_PER_LOAD

    @cuda.jit(device=True, forceinline=True)
    def store(raw: Any, pool: Any, at: Any) -> None:
        for i in range(n_loads):
            eight = uint32(cuda.threadIdx.x) + uint32(i * N_THREADS)
            if (i + 1) * N_THREADS <= n_eights or eight < uint32(n_eights):
                here = int64(at + eight * uint32(HALVES_PER_LOAD))
                store_float4_shared(pool, here, *four(raw, i, 0))
                store_float4_shared(pool, here + 4, *four(raw, i, 2))

    return store


@cache
def add_values(head_dim: int, is_q8: bool) -> Any:
    """add_values(pool, v_cache, v_scales, base, first_key, last_key, raw, mixed): mixed += weights
    x V, of the 64 keys from first_key on, whose weights are in the pool.

    The first of V's buffers holds what belongs to the first of them, and in the end to the next 64.
    """
    td, n_keys = head_dim // COLUMNS, value_keys(head_dim)
    n_quarters, v_floats, four_keys = n_keys // 4, n_keys * head_dim, ROWS.offset(4)
    load, store = load_values(head_dim, is_q8), store_values(head_dim, is_q8)
    load_column = _load_values_column(head_dim)
    multiply = multiply_quarter(load_column, TM, td, ROWS, Columns(head_dim), n_quarters)

    @cuda.jit(device=True, forceinline=True)
    def add(
        pool: Any, v_cache: Any, v_scales: Any, base: Any, first_key: Any, last_key: Any, raw: Any,
        mixed: Any,
    ) -> None:  # fmt: skip
        rows, values = cuda.local.array(TM, float32), cuda.local.array(td, float32)
        row, _ = place()
        chunk, buffer = int32(0), int32(WEIGHTS_SIZE)
        while chunk < HALF_KEYS:
            weights_at, v_at = int64(chunk // 4 * four_keys + row), int64(buffer)
            chunk = int32(chunk + n_keys)
            load(v_cache, v_scales, base, int32(first_key + chunk), last_key, raw)
            load_column(pool, weights_at, v_at, rows, values)
            if n_quarters == 4:
                multiply(pool, weights_at, v_at, mixed, rows, values, 0)
                multiply(pool, weights_at, v_at, mixed, rows, values, 1)
                multiply(pool, weights_at, v_at, mixed, rows, values, 2)
            buffer = int32(2 * WEIGHTS_SIZE + v_floats - buffer)
            store(raw, pool, uint32(buffer))
            multiply(pool, weights_at, v_at, mixed, rows, values, n_quarters - 1)
            cuda.syncthreads()

    return add
