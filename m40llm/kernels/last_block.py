"""Blocks that work on parts of one thing: the last that is done goes on with all of them.

arrived   int32[...], zeros: how many are done, a number for each thing; zeros again in the end
ticket    shared int32[1]
"""

from typing import Any

from numba import cuda, int32


@cuda.jit(device=True, forceinline=True)
def comes_last(arrived: Any, which: Any, n_blocks: Any, ticket: Any) -> Any:
    """Whether this block is the last of n_blocks to come here for arrived[which]; by all of its
    threads. It sees what all of them have written before; the others may leave."""
    cuda.threadfence()  # what this thread wrote, before the block's ticket
    cuda.syncthreads()
    if cuda.threadIdx.x == 0:
        ticket[0] = cuda.atomic.add(arrived, which, 1)
    cuda.syncthreads()
    if ticket[0] != int32(n_blocks - 1):
        return False
    cuda.threadfence()
    if cuda.threadIdx.x == 0:
        arrived[which] = 0  # for the next launch
    return True
