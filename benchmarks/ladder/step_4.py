"""Sums of 8 x 8, and 16 bytes a load.

For a column a thread makes four loads of 16 bytes and 64 products of them: a sixteenth of a load a
product. What is left to wait for is memory: nothing is multiplied while a step's numbers come.
"""

from typing import Any

from ladder_tiles import (
    BK,
    TILE,
    TILE_FLOATS,
    add_products,
    clear,
    launch_of,
    load,
    multiply_of,
    place,
    store,
    write,
)
from numba import cuda, float32, uint32

from m40llm.kernels.contract import Kernel

POOL = 2 * TILE_FLOATS
multiply = multiply_of(add_products)


def wide(w: Any, x: Any, out: Any) -> None:
    pool = cuda.shared.array(POOL, float32, alignment=16)
    acc = cuda.local.array((8, 8), float32)
    quads, raw = cuda.local.array((2, 4), float32), cuda.local.array(4, uint32)
    clear(acc)
    first_token, first_row = cuda.blockIdx.y * TILE, cuda.blockIdx.x * TILE
    token, row = place()
    for col in range(0, x.shape[1], BK):
        load(w, x, first_token, first_row, col, quads, raw)
        store(quads, raw, pool, 0, TILE_FLOATS)
        cuda.syncthreads()
        multiply(pool, token, TILE_FLOATS + row, acc)
        cuda.syncthreads()
    write(acc, first_token + token, first_row + row, out)


launch = launch_of(Kernel(wide, registers=128))
