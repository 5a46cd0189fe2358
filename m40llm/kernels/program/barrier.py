"""The grid barrier: all blocks of a resident grid meet, on one atomic counter.

    arrive(arrived, i)             what this block wrote can be seen by who waits
    wait(arrived, i, target)       until `target` arrivals have been counted

arrived  uint64[n]  counters of arrivals since the buffer was made, so that a launch needs no reset
         (2^64 of them do not come)

No cooperative launch: sm_52 has none. The grid must be resident as a whole, or it waits for ever.
The spin is a volatile load; LLVM may move cuda.ldcg and its like out of a loop. The fence after it
empties the SM's L1 of what others have rewritten since, for all threads of the block.
"""

from typing import Any

from numba import cuda, uint64

from m40llm.kernels.intrinsics import load_volatile


@cuda.jit(device=True, forceinline=True)
def arrive(arrived: Any, i: Any) -> None:
    """The whole block has done its part."""
    cuda.syncthreads()
    if cuda.threadIdx.x == 0:
        cuda.threadfence()
        cuda.atomic.add(arrived, i, uint64(1))


@cuda.jit(device=True, forceinline=True)
def wait(arrived: Any, i: Any, target: Any) -> None:
    """Until the counter has reached `target`."""
    if cuda.threadIdx.x == 0:
        while load_volatile(arrived, i) < target:
            pass
        cuda.threadfence()
    cuda.syncthreads()
