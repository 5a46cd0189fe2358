"""Which lane has what, and to and fro.

Lanes that differ in bit 0 of their number have the same rows, lanes that differ in bit 1 the same
tokens: a load of 16 bytes a lane from shared memory then takes an SM 2.7 cycles, else 4.3 (H100).
Products go through W forth and back, so that each has a factor in common with the one before: it
need not be read from the registers again.
"""

from typing import Any

from ladder_tiles import (
    BK,
    N_THREADS,
    PITCH,
    TILE,
    TILE_FLOATS,
    clear,
    load,
    load_column,
    store,
    write,
)
from numba import cuda, float32, int64, uint32

from m40llm.kernels.contract import Kernel, Launcher

POOL = 4 * TILE_FLOATS


@cuda.jit(device=True, forceinline=True)
def multiply(pool: Any, x_at: Any, w_at: Any, acc: Any) -> None:
    x, w = cuda.local.array(8, float32), cuda.local.array(8, float32)
    for k in range(BK):
        load_column(pool, int64(x_at + k * PITCH), int64(w_at + k * PITCH), x, w)
        for i in range(8):
            for j in range(8):
                n = 7 - j if i & 1 else j
                acc[i, n] += x[i] * w[n]


def to_and_fro(w: Any, x: Any, out: Any) -> None:
    pool = cuda.shared.array(POOL, float32, alignment=16)
    acc = cuda.local.array((8, 8), float32)
    quads, raw = cuda.local.array((2, 4), float32), cuda.local.array(4, uint32)
    clear(acc)
    first_token, first_row = cuda.blockIdx.y * TILE, cuda.blockIdx.x * TILE
    lane, warp = cuda.threadIdx.x & 31, cuda.threadIdx.x >> 5
    token = ((warp & 3) * 4 + (lane & 1) + (lane >> 4) * 2) * 4
    row = ((warp >> 2) * 8 + ((lane >> 1) & 7)) * 4
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


KERNEL = Kernel(to_and_fro, registers=128)


def launch(w: Any, x: Any, out: Any, stream: Launcher) -> None:
    grid = out.shape[1] // TILE, out.shape[0] // TILE
    stream.launch(KERNEL, grid, N_THREADS, w, x, out)
