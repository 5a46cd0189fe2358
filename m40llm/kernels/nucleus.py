"""min_p, top_p and the draw, over a row of logits or a list of keys: see sampling.py."""

import math
from collections.abc import Callable
from typing import Any, Final

from numba import cuda, float32, int64, uint64

from m40llm.kernels.block_reduce import block_sum
from m40llm.kernels.order import (
    id_of,
    key_in_list,
    key_in_row,
    logit_of,
    lowest_key_of,
    mass,
    select_over,
)
from m40llm.kernels.philox import mul_high

_TWO_TO_64: Final = 2.0**64


@cuda.jit(device=True)
def _last_below(fraction: Any, total: Any) -> Any:
    """The largest integer below fraction * total, for 0 < fraction < 1; 0 at least."""
    scaled = uint64(fraction * float32(_TWO_TO_64))
    below = int64(mul_high(scaled, uint64(total)))
    if scaled * uint64(total) == uint64(0):  # the product is a whole number
        below -= int64(1)
    return max(below, int64(0))  # a fraction below 2^-64 keeps the likeliest, too


def _draw_over(key_at: Callable[..., Any]) -> Callable[..., Any]:
    """The device function `draw` for one kind of source."""
    select_mass = select_over(key_at, mass)

    @cuda.jit(device=True)
    def total_mass(
        source: Any, n: Any, lowest: Any, largest: Any, sharpness: Any, scratch: Any
    ) -> Any:
        total = int64(0)
        for i in range(cuda.threadIdx.x, n, cuda.blockDim.x):
            key = key_at(source, i)
            if key >= lowest:
                total += mass(key, largest, sharpness)
        return block_sum(total, scratch)

    @cuda.jit(device=True)
    def draw(
        source: Any, n: Any, lowest: Any, best: Any, temperature: Any, top_p: Any, min_p: Any,
        uniform: Any, bins: Any, found: Any, scratch: Any,
    ) -> Any:  # fmt: skip
        """A token of the keys from `lowest` (top-k's smallest) up; the whole block calls it.

        uniform  uint64, over 2^64 the uniform number
        """
        largest, plain = logit_of(best), float32(1.0)
        kept = lowest
        if min_p > float32(0.0):
            kept = max(kept, lowest_key_of(largest + math.log(min_p)))
        if top_p < plain:
            total = total_mass(source, n, lowest, largest, plain, scratch)
            target = _last_below(top_p, total)
            kept = select_mass(source, n, kept, largest, plain, target, bins, found)
        sharpness = plain / temperature
        total = total_mass(source, n, kept, largest, sharpness, scratch)
        target = int64(mul_high(uniform, uint64(total)))
        drawn = select_mass(source, n, kept, largest, sharpness, target, bins, found)
        return id_of(drawn)

    return draw  # type: ignore[no-any-return]


draw_from_row: Final = _draw_over(key_in_row)
draw_from_list: Final = _draw_over(key_in_list)
