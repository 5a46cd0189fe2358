"""y[t, r] = sum_c W[r, c] * x[t, c] for a few x at once, each with the very bits it has alone.

`dot_row`, the product with one x, keeps a sum for each of the 32 places in a unit, adds unit after
unit to them, each term fused if the machine fuses, and only then adds the 32. So does this, for 3
rows of W and 2 of x at a time: which rows stand beside it, and how many, does not show in a row's
result. W is unpacked once for all x, into the L1.

The lower half of all units is summed before the upper half: 6 sums of 16 floats fill 12 of AVX2's
16 registers, and each load serves two products or three.
"""

import numpy as np
from numba import njit, prange

from m40llm.device.cpu.formats import UNIT
from m40llm.device.cpu.rows import COLS_AT_ONCE, JIT, unpack_rows
from m40llm.device.cpu.simd import LANES, add, fmuladd, lane_sum, load_f32, store_f32

MAX_VECTORS = 16  # rows of a forward whose bits do not depend on each other
ROWS_AT_ONCE = 3  # of W; a chunk of them and of two x, 20 KB, stays in the L1
SUMS = ROWS_AT_ONCE * UNIT  # of a token


@njit(**JIT)
def _add_half_units(w, w0, n_k, x, x0, x1, sums, s0, s1):
    """sums[s0 + 32 r + lane] += sum_u w[w0 + r n_k + 32 u + lane] x[x0 + 32 u + lane]

    for r in 0..2, lane in 0..15 and n_k / 32 units u; sums at s1 likewise of x at x1. All arrays
    float32 and flat. s0 may be s1 if x0 is x1.
    """
    w1, w2 = w0 + n_k, w0 + 2 * n_k
    sum00, sum01 = load_f32(sums, s0), load_f32(sums, s1)
    sum10, sum11 = load_f32(sums, s0 + UNIT), load_f32(sums, s1 + UNIT)
    sum20, sum21 = load_f32(sums, s0 + 2 * UNIT), load_f32(sums, s1 + 2 * UNIT)
    for c in range(0, n_k, UNIT):
        row0, row1, row2 = load_f32(w, w0 + c), load_f32(w, w1 + c), load_f32(w, w2 + c)
        token0, token1 = load_f32(x, x0 + c), load_f32(x, x1 + c)
        sum00, sum01 = fmuladd(row0, token0, sum00), fmuladd(row0, token1, sum01)
        sum10, sum11 = fmuladd(row1, token0, sum10), fmuladd(row1, token1, sum11)
        sum20, sum21 = fmuladd(row2, token0, sum20), fmuladd(row2, token1, sum21)
    store_f32(sums, s0, sum00)
    store_f32(sums, s1, sum01)
    store_f32(sums, s0 + UNIT, sum10)
    store_f32(sums, s1 + UNIT, sum11)
    store_f32(sums, s0 + 2 * UNIT, sum20)
    store_f32(sums, s1 + 2 * UNIT, sum21)


@njit(**JIT)
def _store_sums(sums, first_row, keep, out):
    """out[t, first_row + r] (+)= the sum of the 32 at sums[96 t + 32 r], as dot_row adds them."""
    for t in range(out.shape[0]):
        for r in range(min(ROWS_AT_ONCE, out.shape[1] - first_row)):
            at = t * SUMS + r * UNIT
            value = lane_sum(add(load_f32(sums, at), load_f32(sums, at + LANES)))
            out[t, first_row + r] = value + out[t, first_row + r] if keep else value


@njit(parallel=True, cache=True, **JIT)
def multiply_vectors(kind, memory, row_bytes, chunk_bytes, x, keep, out):
    """out[t, r] = W[r] . x[t] (+ out[t, r] if keep), ROWS_AT_ONCE rows of W a thread at a time."""
    n_tokens, n_cols = x.shape
    n_rows, x_flat = out.shape[1], x.reshape(-1)
    for row_tile in prange((n_rows + ROWS_AT_ONCE - 1) // ROWS_AT_ONCE):
        first_row = row_tile * ROWS_AT_ONCE
        tile = np.empty(ROWS_AT_ONCE * min(n_cols, COLS_AT_ONCE), np.float32)
        sums = np.zeros(n_tokens * SUMS, np.float32)
        for chunk in range((n_cols + COLS_AT_ONCE - 1) // COLS_AT_ONCE):
            first_col = chunk * COLS_AT_ONCE
            n_k = min(COLS_AT_ONCE, n_cols - first_col)
            at = first_row * row_bytes + chunk * chunk_bytes
            n_real = min(ROWS_AT_ONCE, n_rows - first_row)
            unpack_rows(kind, memory, row_bytes, at, n_real, ROWS_AT_ONCE, n_k // UNIT, tile)
            for t in range(0, n_tokens, 2):
                other = min(t + 1, n_tokens - 1)  # the last one twice, if it has no other
                x0, x1 = t * n_cols + first_col, other * n_cols + first_col
                for half in (0, LANES):
                    s0, s1 = t * SUMS + half, other * SUMS + half
                    _add_half_units(tile, half, n_k, x_flat, x0 + half, x1 + half, sums, s0, s1)
        _store_sums(sums, first_row, keep, out)
