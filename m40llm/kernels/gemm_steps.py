"""All steps of a block's tile: from memory to registers to shared memory to sums.

The loop has no branch: what is loaded in one part of a loop and used in another is waited for too
early. So the last step loads and stores once more what is there, and the columns that are no full
step are step 0, padded with zeros.
"""

from functools import cache
from typing import Any, NamedTuple

from gguf import GGMLQuantizationType as GGMLType
from numba import cuda, float32, int32, int64, uint32

from m40llm.kernels.gemm_loads import (
    halves_of,
    load_w_of,
    load_x_of,
    puts_of,
    store_tiles_of,
    w_rows_of,
    x_rows_of,
)
from m40llm.kernels.gemm_tiles import BK, Tile, load_column_of, multiply_of, sync_of
from m40llm.kernels.hints import pinned
from m40llm.kernels.intrinsics import as_bytes


class Steps(NamedTuple):
    """Those of a group of threads: from `begin` to `end`; step 0 has `n_first` columns."""

    begin: Any
    end: Any
    n_first: Any


@cache
def steps_of(n_groups: int) -> Any:
    """steps(n_cols, part, group) -> Steps: groups and blocks that share a tile have equal parts."""

    @cuda.jit(device=True, forceinline=True)
    def steps(n_cols: Any, part: Any, group: Any) -> Any:
        n_steps = uint32(uint32(n_cols + BK - 1) // uint32(BK))
        n_first = int32(n_cols - int32(BK * int32(n_steps - uint32(1))))
        n_slices = uint32(uint32(part.n_splits) * uint32(n_groups))
        slice = uint32(uint32(part.split) * uint32(n_groups) + uint32(group))
        begin = int32(uint32(n_steps * slice) // n_slices)
        end = int32(uint32(n_steps * uint32(slice + uint32(1))) // n_slices)
        return Steps(begin, end, n_first)

    return steps


@cache
def add_steps_of(type: GGMLType, tile: Tile, x_is_half: bool) -> Any:
    """add_steps(quants, highs, scales, x, n_tokens, n_rows, part, pool, group, t, token_at, row_at,
    acc): the products of the group's steps of the block's part, into acc."""
    n_groups, n_buffers, group_bytes = tile.n_groups, tile.n_buffers, tile.group_bytes
    # Into the other buffer while there are products to make: as soon as loads have had the time.
    is_early = tile.group_threads > 128  # so many warps make half a step of it
    col_shift = 1 if x_is_half else 2
    col_bytes = 1 << col_shift
    n_quads, w_begin = tile.x_quads, tile.w_begin
    n_rows_mine = tile.w_eights // halves_of(type, tile)
    find_x_rows, load_x = x_rows_of(tile, x_is_half), load_x_of(tile, x_is_half)
    find_w_rows, load_w = w_rows_of(type, tile), load_w_of(type, tile)
    find_puts, store_tiles = puts_of(type, tile), store_tiles_of(type, tile)
    load_column, multiply = load_column_of(tile), multiply_of(tile)
    steps, sync, buffer_bytes = steps_of(n_groups), sync_of(tile), tile.buffer_bytes

    @cuda.jit(device=True, forceinline=True)
    def add_steps(
        quants: Any, highs: Any, scales: Any, x: Any, n_tokens: Any, n_rows: Any,
        part: Any, pool: Any, group: Any, t: Any, token_at: Any, row_at: Any, acc: Any,
    ) -> None:  # fmt: skip
        x_column, w_column = cuda.local.array(8, float32), cuda.local.array(8, float32)
        quads = cuda.local.array((n_quads, 4), float32)
        raw = cuda.local.array((n_rows_mine, 8), uint32)
        words = cuda.local.array((n_rows_mine, 4), uint32)
        x_rows_at = cuda.local.array(n_quads, uint32)
        rows = cuda.local.array(n_rows_mine, int32)
        rows_at = cuda.local.array(n_rows_mine, uint32)
        n_cols, x_bytes = int32(x.shape[1]), as_bytes(x)
        find_x_rows(part.first_token, n_tokens, n_cols, t, x_rows_at)
        first_col = find_w_rows(quants, part.first_row, n_rows, n_cols, t, rows, rows_at)
        step, end, n_first = steps(n_cols, part, group)
        if step >= end:
            return
        n_here, col = n_first, int32(0)
        if step > 0:
            n_here, col = int32(BK), int32(n_first + int32(BK * int32(step - 1)))
        load_x(x_bytes, x_rows_at, t, int32(col << col_shift), n_here, quads)
        w_col = uint32(col + first_col)
        load_w(quants, highs, scales, rows, rows_at, t, w_col, n_here, n_cols, raw, words)
        first = int32(group * group_bytes)
        x_at = int32(first + int32(4 * token_at))
        w_at = int32(first + w_begin + int32(4 * row_at))
        x_put, w_put = find_puts(t)
        x_put, w_put = int32(x_put + first), int32(w_put + first)
        store_tiles(quads, raw, words, w_col, pool, x_put, w_put)
        sync()
        other = int32(buffer_bytes)  # from the buffer that is multiplied to the one that is filled
        if n_buffers == 2:
            x_put, w_put = int32(x_put + other), int32(w_put + other)
        # Counted in bytes of x, which spares a shift. If step 0 is all, it is loaded twice.
        last = int32(col_bytes * int32(n_first + int32(BK * int32(end - 2))))
        last = pinned(max(last, int32(0)))
        w_first = pinned(int32(first_col << col_shift))
        now = int32(col_bytes * int32(n_first + int32(BK * int32(step - 1))))
        while now <= last:
            now = int32(now + col_bytes * BK)
            load_at = min(now, last)
            load_x(x_bytes, x_rows_at, t, load_at, BK, quads)
            w_col = uint32(uint32(load_at + w_first) >> uint32(col_shift))
            load_w(quants, highs, scales, rows, rows_at, t, w_col, BK, n_cols, raw, words)
            x_mine, w_mine = int64(x_at), int64(w_at)
            load_column(pool, x_mine, w_mine, x_column, w_column)
            multiply(pool, x_mine, w_mine, acc, x_column, w_column, 0)
            multiply(pool, x_mine, w_mine, acc, x_column, w_column, 1)
            if is_early:
                store_tiles(quads, raw, words, w_col, pool, x_put, w_put)
            multiply(pool, x_mine, w_mine, acc, x_column, w_column, 2)
            if n_buffers == 2 and not is_early:
                store_tiles(quads, raw, words, w_col, pool, x_put, w_put)
            if n_buffers == 2:
                x_at, w_at = int32(x_at + other), int32(w_at + other)
                x_put, w_put, other = int32(x_put - other), int32(w_put - other), int32(-other)
            multiply(pool, x_mine, w_mine, acc, x_column, w_column, 3)
            if n_buffers == 1:
                sync()
                store_tiles(quads, raw, words, w_col, pool, x_put, w_put)
            sync()

    return add_steps
