"""Reductions over a warp: every lane gets the result. All 32 lanes take part.

5 shuffles each; the order of the additions is the same in every launch and on every device.
"""

from typing import Any, Final

from numba import cuda

WARP_SIZE: Final = 32
FULL_MASK: Final = 0xFFFFFFFF


@cuda.jit(device=True)
def warp_sum(value: Any) -> Any:
    """The sum of `value` over the lanes, added pairwise."""
    value += cuda.shfl_xor_sync(FULL_MASK, value, 16)
    value += cuda.shfl_xor_sync(FULL_MASK, value, 8)
    value += cuda.shfl_xor_sync(FULL_MASK, value, 4)
    value += cuda.shfl_xor_sync(FULL_MASK, value, 2)
    value += cuda.shfl_xor_sync(FULL_MASK, value, 1)
    return value


@cuda.jit(device=True)
def warp_max(value: Any) -> Any:
    """The largest `value` of the lanes."""
    value = max(value, cuda.shfl_xor_sync(FULL_MASK, value, 16))
    value = max(value, cuda.shfl_xor_sync(FULL_MASK, value, 8))
    value = max(value, cuda.shfl_xor_sync(FULL_MASK, value, 4))
    value = max(value, cuda.shfl_xor_sync(FULL_MASK, value, 2))
    return max(value, cuda.shfl_xor_sync(FULL_MASK, value, 1))
