"""Reductions over a block of whole warps: every thread gets the result.

    total = block_sum(value, scratch)

scratch   shared array of the value's type, 32 entries (a warp's result each); may be used again
          at once: the first barrier lets the last use end
order     within warps pairwise, then warp 0, 1, 2, ...: the same in every launch
"""

from typing import Any

from numba import cuda

from m40llm.kernels.reduce import warp_max, warp_sum


@cuda.jit(device=True)
def block_sum(value: Any, scratch: Any) -> Any:
    """The sum of `value` over the block's threads."""
    value = warp_sum(value)
    warp = cuda.threadIdx.x >> 5
    cuda.syncthreads()
    if cuda.threadIdx.x & 31 == 0:
        scratch[warp] = value
    cuda.syncthreads()
    total = scratch[0]
    for other in range(1, cuda.blockDim.x >> 5):
        total += scratch[other]
    return total


@cuda.jit(device=True)
def block_max(value: Any, scratch: Any) -> Any:
    """The largest `value` of the block's threads."""
    value = warp_max(value)
    warp = cuda.threadIdx.x >> 5
    cuda.syncthreads()
    if cuda.threadIdx.x & 31 == 0:
        scratch[warp] = value
    cuda.syncthreads()
    largest = scratch[0]
    for other in range(1, cuda.blockDim.x >> 5):
        largest = max(largest, scratch[other])
    return largest
