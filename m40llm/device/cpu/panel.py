"""The register tile under every matrix product of the CPU with several tokens.

Tokens lie on the lanes: a panel is 16 tokens, transposed, so that k = 0, 1, ... are vectors of 16.
A tile of TILE_ROWS rows of the other operand is broadcast, element by element, against a panel:
12 accumulators of 8 floats, the shape that fills AVX2's registers. Each lane sums over k in order,
so a token's result does not depend on which tokens stand beside it.

One kernel serves weights (rows of W), attention scores (rows of K) and the mix (columns of V),
which differ in the strides of the broadcast operand only.
"""

from typing import Any

import numpy as np
from numba import njit

from m40llm.device.cpu.simd import LANES, fmuladd, load_f32, splat, store_f32

TILE_ROWS = 6
JIT: dict[str, Any] = {"boundscheck": False, "error_model": "numpy", "nogil": True}


@njit(**JIT)
def multiply_tile(w, w0, row_stride, k_stride, n_k, panel, p0, sums, s0):
    """sums[s0 + 16 r + lane] += sum_k w[w0 + r row_stride + k k_stride] * panel[p0 + 16 k + lane]

    for r in 0..5; all arrays float32 and flat.
    """
    sum0, sum1 = load_f32(sums, s0), load_f32(sums, s0 + LANES)
    sum2, sum3 = load_f32(sums, s0 + 2 * LANES), load_f32(sums, s0 + 3 * LANES)
    sum4, sum5 = load_f32(sums, s0 + 4 * LANES), load_f32(sums, s0 + 5 * LANES)
    r1, r2, r3 = row_stride, 2 * row_stride, 3 * row_stride
    r4, r5 = 4 * row_stride, 5 * row_stride
    for k in range(n_k):
        at = np.uint64(w0 + k * k_stride)
        tokens = load_f32(panel, p0 + k * LANES)
        sum0 = fmuladd(splat(w[at]), tokens, sum0)
        sum1 = fmuladd(splat(w[at + np.uint64(r1)]), tokens, sum1)
        sum2 = fmuladd(splat(w[at + np.uint64(r2)]), tokens, sum2)
        sum3 = fmuladd(splat(w[at + np.uint64(r3)]), tokens, sum3)
        sum4 = fmuladd(splat(w[at + np.uint64(r4)]), tokens, sum4)
        sum5 = fmuladd(splat(w[at + np.uint64(r5)]), tokens, sum5)
    store_f32(sums, s0, sum0)
    store_f32(sums, s0 + LANES, sum1)
    store_f32(sums, s0 + 2 * LANES, sum2)
    store_f32(sums, s0 + 3 * LANES, sum3)
    store_f32(sums, s0 + 4 * LANES, sum4)
    store_f32(sums, s0 + 5 * LANES, sum5)


@njit(**JIT)
def pack_panel(x, first, n_k, panel, p0):
    """panel[p0 + 16 k + lane] = x[first + lane, k]; lanes beyond x are zero."""
    n_lanes = min(LANES, x.shape[0] - first)
    for k in range(n_k):
        for lane in range(LANES):
            inside = lane < n_lanes
            panel[p0 + k * LANES + lane] = x[first + lane, k] if inside else np.float32(0)
