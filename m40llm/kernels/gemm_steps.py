"""All steps of a block's tile: from memory to registers to shared memory to sums.

The loop has no branch: what is loaded in one part of a loop and used in another is waited for too
early. So the last step loads and stores once more what is there, and the columns that are no full
step are step 0, padded with zeros.
"""

from functools import cache
from typing import Any, NamedTuple

from gguf import GGMLQuantizationType as GGMLType
from numba import cuda, float32, int32, int64, uint32

from m40llm.kernels.gemm_tiles import (
    BK,
    Tile,
    load_column_of,
    load_w_of,
    load_x_of,
    multiply_of,
    store_tiles_of,
    sync_of,
    x_rows_of,
)


class Steps(NamedTuple):
    """Those of a group of threads: from `begin` to `end`; step 0 has `n_first` columns."""

    begin: Any
    end: Any
    n_first: Any


@cache
def steps_of(n_groups: int) -> Any:
    """steps(n_cols, group) -> Steps: groups and blocks that share a tile have equal parts."""

    @cuda.jit(device=True, forceinline=True)
    def steps(n_cols: Any, group: Any) -> Any:
        n_steps = uint32(uint32(n_cols + BK - 1) // uint32(BK))
        n_first = int32(n_cols - int32(BK * int32(n_steps - uint32(1))))
        n_slices = uint32(uint32(cuda.gridDim.z) * uint32(n_groups))
        slice = uint32(uint32(cuda.blockIdx.z) * uint32(n_groups) + uint32(group))
        begin = int32(uint32(n_steps * slice) // n_slices)
        end = int32(uint32(n_steps * uint32(slice + uint32(1))) // n_slices)
        return Steps(begin, end, n_first)

    return steps


@cache
def add_steps_of(type: GGMLType, tile: Tile, x_is_half: bool) -> Any:
    """add_steps(quants, highs, scales, x, n_tokens, n_rows, first_token, first_row, pool, group, t,
    token_at, row_at, acc): the products of the group's steps, into acc."""
    n_threads, n_groups, n_buffers = tile.group_threads, tile.n_groups, tile.n_buffers
    n_quads, n_eights = tile.x_quads, tile.w_eights
    x_floats, w_floats, group_floats = tile.x_floats, tile.w_floats, tile.group_floats
    w_first, rows_apart = tile.n_buffers * tile.x_floats, n_threads // 2
    load_x, load_w, find_x_rows = load_x_of(tile, x_is_half), load_w_of(type, tile), x_rows_of(tile)
    store_tiles, multiply, steps = store_tiles_of(type, tile), multiply_of(tile), steps_of(n_groups)
    load_column, sync = load_column_of(tile), sync_of(tile)

    @cuda.jit(device=True, forceinline=True)
    def add_steps(
        quants: Any, highs: Any, scales: Any, x: Any, n_tokens: Any, n_rows: Any,
        first_token: Any, first_row: Any, pool: Any, group: Any, t: Any,
        token_at: Any, row_at: Any, acc: Any,
    ) -> None:  # fmt: skip
        x_column, w_column = cuda.local.array(8, float32), cuda.local.array(8, float32)
        quads = cuda.local.array((n_quads, 4), float32)
        raw = cuda.local.array((n_eights, 8), uint32)
        quads_at = cuda.local.array(n_quads, uint32)
        rows = cuda.local.array(n_eights, int32)
        n_cols = int32(x.shape[1])
        find_x_rows(first_token, n_tokens, n_cols, t, quads_at)
        for i in range(n_eights):
            row = int32(first_row + int32((t >> uint32(1)) + uint32(i * rows_apart)))
            rows[i] = min(row, int32(n_rows - 1))  # beyond: computed, not stored
        x_at = int32(group * group_floats)
        w_at = int32(x_at + w_first)
        step, end, n_first = steps(n_cols, group)
        if step >= end:
            return
        n_here, col = n_first, int32(0)
        if step > 0:
            n_here, col = int32(BK), int32(n_first + int32(BK * int32(step - 1)))
        load_x(x, quads_at, t, col, n_here, quads)
        load_w(quants, highs, scales, rows, t, col, n_here, n_cols, raw)
        store_tiles(quads, raw, t, col, pool, uint32(x_at), uint32(w_at))
        sync()
        last_col = int32(n_first + int32(BK * int32(end - 2)))
        col = int32(n_first + int32(BK * int32(step - 1)))
        while step < end:
            col = min(int32(col + BK), max(last_col, int32(0)))
            load_x(x, quads_at, t, col, BK, quads)
            load_w(quants, highs, scales, rows, t, col, BK, n_cols, raw)
            x_mine, w_mine = int64(x_at + token_at), int64(w_at + row_at)
            load_column(pool, x_mine, w_mine, x_column, w_column)
            multiply(pool, x_mine, w_mine, acc, x_column, w_column, 0)
            multiply(pool, x_mine, w_mine, acc, x_column, w_column, 1)
            multiply(pool, x_mine, w_mine, acc, x_column, w_column, 2)
            if n_buffers == 2:  # into the other one, while there are products to make
                x_at, w_at = int32(x_floats - x_at), int32(2 * w_first + w_floats - w_at)
                store_tiles(quads, raw, t, col, pool, uint32(x_at), uint32(w_at))
                multiply(pool, x_mine, w_mine, acc, x_column, w_column, 3)
            else:
                multiply(pool, x_mine, w_mine, acc, x_column, w_column, 3)
                sync()
                store_tiles(quads, raw, t, col, pool, uint32(x_at), uint32(w_at))
            sync()
            step = int32(step + 1)

    return add_steps
