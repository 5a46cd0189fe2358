"""Two buffers.

The next step's numbers are asked for before this one's are multiplied, wait in registers, and go to
the other buffer: one barrier a step, and memory works while the arithmetic does.
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

POOL = 4 * TILE_FLOATS


def kernel_of(place: Any, multiply: Any) -> Kernel:
    """Step 6 has another place of a thread, and another order of products."""

    def double_buffered(w: Any, x: Any, out: Any) -> None:
        pool = cuda.shared.array(POOL, float32, alignment=16)
        acc = cuda.local.array((8, 8), float32)
        quads, raw = cuda.local.array((2, 4), float32), cuda.local.array(4, uint32)
        clear(acc)
        first_token, first_row = cuda.blockIdx.y * TILE, cuda.blockIdx.x * TILE
        token, row = place()
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

    return Kernel(double_buffered, registers=128)


launch = launch_of(kernel_of(place, multiply_of(add_products)))
