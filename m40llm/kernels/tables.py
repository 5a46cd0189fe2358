"""Quants that are numbers of values in a table of 16 (IQ4_NL, IQ4_XS), four at a time.

    bytes = look_up(type)(selectors)    byte k: the value of nibble k of the low 16 bits, plus BIAS

The table is four words of bytes: values of even numbers, and of odd ones. A selector is a number
whose lowest bit has become its highest (`selectors_of`, for the plane of quants). One permutation
of bytes takes the even values by the selectors, another the odd ones by the selectors with that bit
changed. Where the highest bit is set a permutation gives the highest bit of the byte instead, eight
times over: of a number one of the two gives its value, the other 0 or 255, and their exclusive or
is the value plus BIAS. For that the odd bytes are stored with a highest bit of 0, so that an even
one meets 0, and inverted where they meet 255, which is where the even one before has a 1 there.
"""

from functools import cache
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as GGMLType
from numba import cuda, uint32
from numpy.typing import NDArray

from m40llm.kernels.bits import permute_bytes
from m40llm.kernels.layouts import VALUES_OF
from m40llm.kernels.scales import BIAS


def selectors_of(numbers: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Two nibbles a byte, each turned right by a bit."""
    upper, lowest = np.uint8(0x77), np.uint8(0x88)
    return numbers >> np.uint8(1) & upper | numbers << np.uint8(3) & lowest


def numbers_of(selectors: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The inverse."""
    upper, lowest = np.uint8(0xEE), np.uint8(0x11)
    return selectors << np.uint8(1) & upper | selectors >> np.uint8(3) & lowest


def _words(type: GGMLType) -> list[int]:
    values = [value + BIAS[type] for value in VALUES_OF[type]]
    even, odd = values[0::2], values[1::2]
    assert all((a ^ b) < 0x80 for a, b in zip(even, odd, strict=True)), "signs of a pair differ"
    odd = [b ^ 0xFF if a & 0x80 else b for a, b in zip(even, odd, strict=True)]
    table = bytes(even + odd)
    return [int.from_bytes(table[at : at + 4], "little") for at in (0, 4, 8, 12)]


@cache
def look_up(type: GGMLType) -> Any:
    """The device function of a type."""
    first, second, third, fourth = _words(type)

    @cuda.jit(device=True, forceinline=True)
    def look_up_four(selectors: Any) -> Any:
        # No kernel here has threads beside one another in z. Of what it cannot know to be constant
        # the assembler keeps two words in registers, where it would move them there each time.
        zero = uint32(cuda.threadIdx.z)
        even = permute_bytes(uint32(first) ^ zero, uint32(second), selectors)
        changed = uint32(selectors ^ uint32(0x8888))
        odd = permute_bytes(uint32(third) ^ zero, uint32(fourth), changed)
        return uint32(even ^ odd)

    return look_up_four
