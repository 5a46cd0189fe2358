"""Two buffers.

The next step's numbers are asked for before this one's are multiplied, wait in registers, and go to
the other buffer: one barrier a step, and memory works while the arithmetic does.
"""

from typing import Any

from ladder_tiles import BK, N_THREADS, TILE, TILE_FLOATS, clear, load, multiply, store, write
from numba import cuda, float32, uint32

from m40llm.kernels.contract import Kernel, Launcher

POOL = 4 * TILE_FLOATS


def double_buffered(w: Any, x: Any, out: Any) -> None:
    pool = cuda.shared.array(POOL, float32, alignment=16)
    acc = cuda.local.array((8, 8), float32)
    quads, raw = cuda.local.array((2, 4), float32), cuda.local.array(4, uint32)
    clear(acc)
    first_token, first_row = cuda.blockIdx.y * TILE, cuda.blockIdx.x * TILE
    token, row = (cuda.threadIdx.x >> 4) * 4, (cuda.threadIdx.x & 15) * 4
    load(w, x, first_token, first_row, 0, quads, raw)
    store(quads, raw, pool, 0, TILE_FLOATS)
    cuda.syncthreads()
    at = 0
    for col in range(0, x.shape[1], BK):
        has_next = col + BK < x.shape[1]
        if has_next:
            load(w, x, first_token, first_row, col + BK, quads, raw)
        multiply(pool, at + token, at + TILE_FLOATS + row, acc)
        if has_next:
            at = 2 * TILE_FLOATS - at
            store(quads, raw, pool, at, at + TILE_FLOATS)
            cuda.syncthreads()
    write(acc, first_token + token, first_row + row, out)


KERNEL = Kernel(double_buffered, registers=128)


def launch(w: Any, x: Any, out: Any, stream: Launcher) -> None:
    grid = out.shape[1] // TILE, out.shape[0] // TILE
    stream.launch(KERNEL, grid, N_THREADS, w, x, out)
