"""A thread an output.

Each thread reads all of a row of x and of W: 2 * n_cols loads for n_cols products. Neighbouring
threads have neighbouring rows of W, whose elements lie far apart, so that a warp's load touches 32
lines of memory. All that saves it is the caches.
"""

from typing import Any

from numba import cuda, float32

from m40llm.kernels.bits import half2_to_float2
from m40llm.kernels.contract import Kernel, Launcher

SIDE = 16


def naive(w: Any, x: Any, out: Any) -> None:
    """w uint32[n_rows, n_cols / 2], two halves a word; x float32[n_tokens, n_cols]"""
    row = cuda.blockIdx.x * SIDE + cuda.threadIdx.x
    token = cuda.blockIdx.y * SIDE + cuda.threadIdx.y
    total = float32(0)
    for pair in range(w.shape[1]):
        low, high = half2_to_float2(w[row, pair])
        total += x[token, 2 * pair] * low
        total += x[token, 2 * pair + 1] * high
    out[token, row] = total


KERNEL = Kernel(naive)


def launch(w: Any, x: Any, out: Any, stream: Launcher) -> None:
    grid = out.shape[1] // SIDE, out.shape[0] // SIDE
    stream.launch(KERNEL, grid, (SIDE, SIDE), w, x, out)
