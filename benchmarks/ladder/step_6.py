"""Which lane has what, and to and fro: step 5 with another place of a thread and order of products.

Lanes that differ in bit 0 of their number have the same rows, lanes that differ in bit 1 the same
tokens: a load of 16 bytes a lane from shared memory then takes an SM 2.7 cycles, else 4.3 (H100).
Products go through W forth and back, so that each has a factor in common with the one before: it
need not be read from the registers again.
"""

from typing import Any

from ladder_tiles import launch_of, multiply_of
from numba import cuda
from step_5 import kernel_of


@cuda.jit(device=True, forceinline=True)
def place() -> Any:
    """(token, row): the first of the thread's outputs, within the tile."""
    lane, warp = cuda.threadIdx.x & 31, cuda.threadIdx.x >> 5
    token = ((warp & 3) * 4 + (lane & 1) + (lane >> 4) * 2) * 4
    return token, ((warp >> 2) * 8 + ((lane >> 1) & 7)) * 4


@cuda.jit(device=True, forceinline=True)
def to_and_fro(x: Any, w: Any, acc: Any) -> None:
    """The products of one column."""
    for i in range(8):
        for j in range(8):
            n = 7 - j if i & 1 else j
            acc[i, n] += x[i] * w[n]


launch = launch_of(kernel_of(place, multiply_of(to_and_fro)))
