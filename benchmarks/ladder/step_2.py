"""A block's rows and tokens in shared memory.

16 x 16 outputs a block, 16 columns at a time: each number that comes from memory now serves 16
products. But every product still takes two loads of shared memory, and those are no faster than the
arithmetic.
"""

from typing import Any

from numba import cuda, float32

from m40llm.kernels.bits import half2_to_float2
from m40llm.kernels.contract import Kernel, Launcher

SIDE = 16
PITCH = SIDE + 1  # of W: a row a bank further on


def tiled(w: Any, x: Any, out: Any) -> None:
    x_tile = cuda.shared.array((SIDE, SIDE), float32)
    w_tile = cuda.shared.array((SIDE, PITCH), float32)
    i, j = cuda.threadIdx.y, cuda.threadIdx.x
    first_token, first_row = cuda.blockIdx.y * SIDE, cuda.blockIdx.x * SIDE
    total = float32(0)
    for col in range(0, x.shape[1], SIDE):
        x_tile[i, j] = x[first_token + i, col + j]
        if j < SIDE // 2:
            low, high = half2_to_float2(w[first_row + i, col // 2 + j])
            w_tile[i, 2 * j], w_tile[i, 2 * j + 1] = low, high
        cuda.syncthreads()
        for k in range(SIDE):
            total += x_tile[i, k] * w_tile[j, k]
        cuda.syncthreads()
    out[first_token + i, first_row + j] = total


KERNEL = Kernel(tiled)


def launch(w: Any, x: Any, out: Any, stream: Launcher) -> None:
    grid = out.shape[1] // SIDE, out.shape[0] // SIDE
    stream.launch(KERNEL, grid, (SIDE, SIDE), w, x, out)
