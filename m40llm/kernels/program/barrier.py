"""The grid barrier: all blocks of a resident grid meet, on one atomic counter.

    arrive(arrived)                what this block wrote can be seen by who waits
    wait(arrived, target)          until `target` arrivals have been counted

arrived  uint64[1]  arrivals since the buffer was made; a multiple of the number of blocks where no
         launch is under way, so that a launch needs no reset (2^64 of them do not come)

No cooperative launch: sm_52 has none. The grid must be resident as a whole, or it waits for ever.
The spin is a volatile load; LLVM may move cuda.ldcg and its like out of a loop. The fence after it
empties the SM's L1 of what others have rewritten since, for all threads of the block.
"""

from typing import Any

from numba import cuda, uint64

from m40llm.kernels.intrinsics import load_volatile


@cuda.jit(device=True, forceinline=True)
def arrive(arrived: Any) -> None:
    """The whole block has done its part."""
    cuda.syncthreads()
    if cuda.threadIdx.x == 0:
        cuda.threadfence()
        cuda.atomic.add(arrived, 0, uint64(1))


@cuda.jit(device=True, forceinline=True)
def wait(arrived: Any, target: Any) -> None:
    """Until the counter has reached `target`."""
    if cuda.threadIdx.x == 0:
        while load_volatile(arrived, 0) < target:
            pass
        cuda.threadfence()
    cuda.syncthreads()
