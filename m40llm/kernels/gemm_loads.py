"""How a step of a matrix product comes into shared memory: each thread's share of x and of W.

    find_x_rows, find_w_rows   once: where the rows begin of which the thread loads
    load_x, load_w             a step's quads of x and eights of weights, into registers: early
    store_tiles                weights dequantised, both transposed, into a buffer: late

In between, the block multiplies the step before (gemm_steps.py).
"""

from functools import cache
from typing import Any

from gguf import GGMLQuantizationType as GGMLType
from numba import cuda, float32, int32, int64, uint32

from m40llm.kernels.bits import half2_to_float2
from m40llm.kernels.dequantize import (
    convert,
    decode_scales,
    fetch,
    fetch_both,
    fetch_scales,
    pick_half,
    row_start,
)
from m40llm.kernels.gemm_tiles import Tile
from m40llm.kernels.hints import pinned
from m40llm.kernels.intrinsics import load_float4_readonly, load_uint2_readonly, store_float_shared
from m40llm.kernels.layouts import DENSE
from m40llm.kernels.unpack import LANES


@cache
def x_rows_of(tile: Tile, is_half: bool) -> Any:
    """find_x_rows(first_token, n_tokens, n_cols, t, x_at): where in x the thread's quads begin, in
    bytes. Rows beyond the last are the last one: computed, not stored."""
    n_quads, apart, quad_bytes = tile.x_quads, tile.group_threads // 4, 8 if is_half else 16

    @cuda.jit(device=True, forceinline=True)
    def find_x_rows(first_token: Any, n_tokens: Any, n_cols: Any, t: Any, x_at: Any) -> None:
        row_quads = uint32(uint32(n_cols) >> uint32(2))
        mine = min(uint32(t & uint32(3)), uint32(row_quads - uint32(1)))  # what is loaded in vain
        for i in range(n_quads):
            token = int32(first_token + int32((t >> uint32(2)) + uint32(i * apart)))
            token = min(token, int32(n_tokens - 1))
            quad = uint32(uint32(token) * row_quads + mine)
            x_at[i] = pinned(uint32(quad * uint32(quad_bytes)))

    return find_x_rows


@cache
def load_x_of(tile: Tile, is_half: bool) -> Any:
    """load_x(x, x_at, t, col_at, n_here, quads): the thread's quads of n_here columns of a step;
    zeros beyond. x and col_at, where the step begins in a row, count bytes; x_at: see x_rows_of. An
    offset of 32 bits that need not be shifted is added in two instructions, one less."""
    n_quads = tile.x_quads

    @cuda.jit(device=True, forceinline=True)
    def load_x(x: Any, x_at: Any, t: Any, col_at: Any, n_here: Any, quads: Any) -> None:
        mine = int32(uint32(t & uint32(3)) * uint32(4))
        for i in range(n_quads):
            x0, x1, x2, x3 = float32(0), float32(0), float32(0), float32(0)
            if mine < n_here:
                at = int64(uint32(x_at[i] + uint32(col_at)))
                if is_half:
                    low, high = load_uint2_readonly(x, at)
                    x0, x1 = half2_to_float2(low)
                    x2, x3 = half2_to_float2(high)
                else:
                    x0, x1, x2, x3 = load_float4_readonly(x, at)
            quads[i, 0], quads[i, 1], quads[i, 2], quads[i, 3] = x0, x1, x2, x3

    return load_x


def halves_of(type: GGMLType, tile: Tile) -> int:
    """Eights of a row that a thread loads: 2, which have one scale, where that is faster (H100):
    with high bits it is not, nor where each warp has a buffer of its own."""
    is_plain = type not in DENSE and not LANES[type].n_highs
    return 2 if is_plain and tile.w_eights > 1 and tile.n_groups == 1 else 1


@cache
def w_rows_of(type: GGMLType, tile: Tile) -> Any:
    """find_w_rows(quants, first_row, n_rows, n_cols, t, rows, rows_at) -> the first of the thread's
    columns of a step: its rows and where they begin. Those beyond the last are the last one."""
    halves, start = halves_of(type, tile), row_start(type)
    apart, shift = tile.group_threads * halves // 2, 2 - halves  # threads of a row: 2^shift

    @cuda.jit(device=True, forceinline=True)
    def find_w_rows(
        quants: Any, first_row: Any, n_rows: Any, n_cols: Any, t: Any, rows: Any, rows_at: Any
    ) -> Any:
        for i in range(rows.size):
            row = int32(first_row + int32((t >> uint32(shift)) + uint32(i * apart)))
            rows[i] = min(row, int32(n_rows - 1))
            rows_at[i] = pinned(start(quants, rows[i]))
        if halves == 2:
            return int32(0)
        mine = int32(uint32(t & uint32(1)) * uint32(8))
        mine = min(mine, int32(int32(n_cols - 4) & ~7))  # what is loaded in vain is inside
        return pinned(mine)

    return find_w_rows


@cache
def load_w_of(type: GGMLType, tile: Tile) -> Any:
    """load_w(quants, highs, scales, rows, rows_at, t, col, n_here, n_cols, raw, words): what the
    thread's weights of a row, from its column on, are made of, raw[i], and their scale, words[i];
    nothing beyond n_here of the step, of which quantised types have all. See w_rows_of."""
    halves = halves_of(type, tile)
    n_rows_mine = tile.w_eights // halves
    fetch_one, fetch_words = fetch(type), fetch_scales(type)
    fetch_two = fetch_both(type) if halves == 2 else fetch_one

    @cuda.jit(device=True, forceinline=True)
    def load_w(
        quants: Any, highs: Any, scales: Any, rows: Any, rows_at: Any, t: Any, col: Any,
        n_here: Any, n_cols: Any, raw: Any, words: Any,
    ) -> None:  # fmt: skip
        mine = int32(0)
        if halves == 1:
            mine = int32(uint32(t & uint32(1)) * uint32(8))
        one, of_row = cuda.local.array(8, uint32), cuda.local.array(4, uint32)
        for i in range(n_rows_mine):
            for k in range(8):
                one[k], of_row[k & 3] = uint32(0), uint32(0)
            if mine < n_here:
                if halves == 2:
                    fetch_two(quants, rows_at[i], col, one)
                else:
                    fetch_one(quants, highs, rows[i], rows_at[i], col, n_cols, one)
                fetch_words(scales, rows[i], col, of_row)
            for k in range(8):
                raw[i, k] = one[k]
            for k in range(4):
                words[i, k] = of_row[k]

    return load_w


@cache
def puts_of(type: GGMLType, tile: Tile) -> Any:
    """find_puts(t) -> (x_put, w_put): where in a buffer a thread's first elements go, in bytes."""
    x_quad, w_eight = tile.x_columns.offset(4), tile.w_columns.offset(8)
    w_begin, halves = tile.w_begin, halves_of(type, tile)

    @cuda.jit(device=True, forceinline=True)
    def find_puts(t: Any) -> Any:
        x_put = (t & uint32(3)) * uint32(x_quad) + (t >> uint32(2)) * uint32(4)
        w_put = t * uint32(4)
        if halves == 1:
            w_put = (t & uint32(1)) * uint32(w_eight) + (t >> uint32(1)) * uint32(4)
        return int32(x_put), int32(w_put + uint32(w_begin))

    return find_puts


@cache
def store_tiles_of(type: GGMLType, tile: Tile) -> Any:
    """store_tiles(quads, raw, words, col, pool, x_put, w_put): what was loaded, into shared memory,
    where pool counts bytes. col: of the thread's weights."""
    n_quads, halves = tile.x_quads, halves_of(type, tile)
    n_rows_mine = tile.w_eights // halves
    x_pitch, w_pitch = tile.x_columns.pitch, tile.w_columns.pitch
    x_apart, w_apart = tile.group_threads, 2 * tile.group_threads * halves
    w_eight = tile.w_columns.offset(8)
    convert_weights, decode_words = convert(type), decode_scales(type)
    pick = pick_half(type) if halves == 2 else convert_weights

    @cuda.jit(device=True, forceinline=True)
    def store_tiles(
        quads: Any, raw: Any, words: Any, col: Any, pool: Any, x_put: Any, w_put: Any
    ) -> None:
        weights, one = cuda.local.array(8, float32), cuda.local.array(8, uint32)
        both, of_row = cuda.local.array(8, uint32), cuda.local.array(4, uint32)
        x_first, w_first = int64(x_put), int64(w_put)
        for i in range(n_quads):
            for k in range(4):
                store_float_shared(pool, x_first + (k * x_pitch + i * x_apart), quads[i, k])
        for i in range(n_rows_mine):
            for k in range(4):
                of_row[k] = words[i, k]
            for k in range(8):
                both[k] = raw[i, k]
            scale, minimum = decode_words(of_row, int32(col))
            for half in range(halves):
                if halves == 2:
                    pick(both, half, one)
                    at = int32(uint32(col) + uint32(8 * half))
                    convert_weights(one, scale, minimum, at, weights)
                else:
                    convert_weights(both, scale, minimum, int32(col), weights)
                for k in range(8):
                    put = k * w_pitch + i * w_apart + half * w_eight
                    store_float_shared(pool, w_first + put, weights[k])

    return store_tiles
