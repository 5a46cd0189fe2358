"""Reductions over a warp. All 32 lanes take part.

The order of the additions is the same in every launch and on every device. `warp_sum` and
`warp_max` give every lane the result, by 5 shuffles; `scatter_sums` reduces many values at a time.
"""

from functools import cache
from typing import Any, Final

from numba import cuda, uint32

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


@cache
def scatter_sums(n: int, low: int, high: int) -> Any:
    """scatter(values): n sums, each over the lanes that differ in their numbers' bits from `low` to
    below `high`; a lane gets its share of them. All three are powers of two.

    Of the high / low lanes that add up, number f gets the sums of values[f * k : (f + 1) * k],
    k = n * low / high, in values[:k]. With fewer sums than lanes, neighbours get the same one,
    values[f * n * low / high]. Where 5 n shuffles would give every lane all sums of a warp, this
    takes n - 1, and one for each time that n could be doubled.
    """

    @cuda.jit(device=True, forceinline=True)
    def scatter(values: Any) -> None:
        lane = uint32(cuda.threadIdx.x)
        width, half = high // 2, n // 2
        while half > 0 and width >= low:
            is_upper = uint32(lane & uint32(width)) != uint32(0)
            for i in range(half):
                first, second = values[i], values[i + half]
                given = first if is_upper else second
                kept = second if is_upper else first
                values[i] = kept + cuda.shfl_xor_sync(FULL_MASK, given, width)
            width //= 2
            half //= 2
        while width >= low:
            values[0] += cuda.shfl_xor_sync(FULL_MASK, values[0], width)
            width //= 2

    return scatter
