"""Sums of 4 x 4 in a thread's registers.

64 x 64 outputs a block of 256 threads. For a column a thread loads 4 numbers of x and 4 of W, and
makes 16 products of them: half a load a product, where there were two.
"""

from typing import Any

from numba import cuda, float32

from m40llm.kernels.bits import half2_to_float2
from m40llm.kernels.contract import Kernel, Launcher

TILE, BK, N_THREADS = 64, 16, 256
PITCH = BK + 1


def registers(w: Any, x: Any, out: Any) -> None:
    x_tile = cuda.shared.array((TILE, PITCH), float32)
    w_tile = cuda.shared.array((TILE, PITCH), float32)
    acc = cuda.local.array((4, 4), float32)
    for i in range(4):
        for j in range(4):
            acc[i, j] = float32(0)
    t = cuda.threadIdx.x
    first_token, first_row = cuda.blockIdx.y * TILE, cuda.blockIdx.x * TILE
    token, row = t // 16, t % 16  # of its outputs, the first; the others are 16 further on
    for col in range(0, x.shape[1], BK):
        for n in range(4):
            at = t + n * N_THREADS
            x_tile[at // BK, at % BK] = x[first_token + at // BK, col + at % BK]
        for n in range(2):
            at = t + n * N_THREADS
            low, high = half2_to_float2(w[first_row + at // 8, col // 2 + at % 8])
            w_tile[at // 8, 2 * (at % 8)], w_tile[at // 8, 2 * (at % 8) + 1] = low, high
        cuda.syncthreads()
        for k in range(BK):
            for i in range(4):
                for j in range(4):
                    acc[i, j] += x_tile[token + 16 * i, k] * w_tile[row + 16 * j, k]
        cuda.syncthreads()
    for i in range(4):
        for j in range(4):
            out[first_token + token + 16 * i, first_row + row + 16 * j] = acc[i, j]


KERNEL = Kernel(registers)


def launch(w: Any, x: Any, out: Any, stream: Launcher) -> None:
    grid = out.shape[1] // TILE, out.shape[0] // TILE
    stream.launch(KERNEL, grid, N_THREADS, w, x, out)
