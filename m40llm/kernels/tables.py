"""Quants that are numbers of values in a table of 16 (IQ4_NL, IQ4_XS, MXFP4), four at a time.

    bytes = look_up(type)(selectors)    byte k: the value of nibble k of the low 16 bits, plus BIAS

The table is four words of bytes. Two permutations of bytes take four values of each half by the low
three bits of their selectors, a third one takes those of either half by the highest bits.
"""

from functools import cache
from typing import Any

from gguf import GGMLQuantizationType as GGMLType
from numba import cuda, uint32

from m40llm.kernels.bits import permute_bytes
from m40llm.kernels.layouts import VALUES_OF
from m40llm.kernels.scales import BIAS


def _words(type: GGMLType) -> list[int]:
    table = bytes(value + BIAS[type] for value in VALUES_OF[type])
    return [int.from_bytes(table[at : at + 4], "little") for at in (0, 4, 8, 12)]


@cache
def look_up(type: GGMLType) -> Any:
    """The device function of a type."""
    first, second, third, fourth = _words(type)

    @cuda.jit(device=True, forceinline=True)
    def look_up_four(selectors: Any) -> Any:
        in_half = uint32(selectors & uint32(0x7777))
        low = permute_bytes(uint32(first), uint32(second), in_half)
        high = permute_bytes(uint32(third), uint32(fourth), in_half)
        which = uint32(uint32(selectors & uint32(0x8888)) >> uint32(1)) | uint32(0x3210)
        return permute_bytes(low, high, uint32(which))

    return look_up_four
