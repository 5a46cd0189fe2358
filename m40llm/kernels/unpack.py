"""Four quants of a word as four floats, in one instruction each and no conversion.

An FP32 number whose bits are an integer n below 2^24 is the number n * 2^-149, a subnormal or
just above: masking a quant where it stands in its word gives quant * 2^(position - 149), exactly,
and the FMA units multiply subnormals at full speed. The factor is undone in x: whoever stages x
multiplies the four numbers that meet these four by STAGE_SCALE * factor(group, k), powers of two,
and a sum of products comes out multiplied by RESULT_SCALE. Never compile this with fastmath: it
flushes subnormals to zero.

    f0, f1, f2, f3 = unpack(a, b, c, d, highs, highs_2, group)

`group` says which four of a lane's run of quants (8 groups in 32 weights, 4 in the 16 of Q8_0, 2
in the 8 of F16, 1 in the 4 of F32); a..d are words of quants from the group's first one on
(Lane.first_word), of which most types need one. F16 and F32 are numbers already; their factor is 1.
MXFP4's quants are small floats, which become FP32 ones of another unit: e2m1.py.
"""

from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np
from gguf import GGMLQuantizationType as GGMLType
from numba import cuda, uint32

from m40llm.kernels import e2m1
from m40llm.kernels.bits import half2_to_float2, uint_as_float
from m40llm.kernels.layouts import DENSE, VALUES_OF
from m40llm.kernels.tables import look_up

# x up to 2^39 cannot overflow, and what underflows is below 2^-88 of the unit of x.
STAGE_SCALE: Final = 2.0**88
RESULT_SCALE: Final = STAGE_SCALE * 2.0**-149
_FOUR: Final = 0x0F0F0F0F


@cuda.jit(device=True)
def _floats_of_bytes(word: Any) -> Any:
    return (
        uint_as_float(uint32(word & uint32(0xFF))),
        uint_as_float(uint32(word & uint32(0xFF00))),
        uint_as_float(uint32(word & uint32(0xFF0000))),
        uint_as_float(uint32(word >> uint32(24))),
    )


@cuda.jit(device=True)
def _unpack_nibbles(a: Any, b: Any, c: Any, d: Any, highs: Any, highs_2: Any, group: Any) -> Any:
    if group < 4:
        return (
            uint_as_float(uint32(a & uint32(0xF))),
            uint_as_float(uint32(a & uint32(0xF00))),
            uint_as_float(uint32(a & uint32(0xF0000))),
            uint_as_float(uint32(a >> uint32(24)) & uint32(0xF)),
        )
    return (
        uint_as_float(uint32(a & uint32(0xF0))),
        uint_as_float(uint32(a & uint32(0xF000))),
        uint_as_float(uint32(a & uint32(0xF00000))),
        uint_as_float(uint32(a >> uint32(28))),
    )


@cache
def _unpack_with_bit(field_bits: int) -> Any:
    """Of quants with one bit more than the 2 or 4 that lie in their word."""
    fields, bits = ((2**n - 1) * 0x01010101 << at for n, at in ((field_bits, 0), (1, field_bits)))
    to_shift = 8 - field_bits  # bits of a group's number that are its field's shift: 6 or 4

    @cuda.jit(device=True)
    def unpack(a: Any, b: Any, c: Any, d: Any, highs: Any, highs_2: Any, group: Any) -> Any:
        bit = 2 * (group & 3) + (group >> 2)  # of the group's in each byte; wanted at field_bits
        if bit < field_bits:
            high = uint32(highs << uint32(field_bits - bit)) & uint32(bits)
        else:
            high = uint32(highs >> uint32(bit - field_bits)) & uint32(bits)
        low = uint32(a >> uint32(group & to_shift)) & uint32(fields)
        return _floats_of_bytes(uint32(low | high))

    return unpack


@cuda.jit(device=True)
def _unpack_six(a: Any, b: Any, c: Any, d: Any, highs: Any, highs_2: Any, group: Any) -> Any:
    bit = 4 * (group & 1) + 2 * (group >> 2)
    word = highs_2 if group & 2 else highs
    if bit < 4:
        high = uint32(word << uint32(4 - bit)) & uint32(0x30303030)
    else:
        high = uint32(word >> uint32(bit - 4)) & uint32(0x30303030)
    low = uint32(a >> uint32(group & 4)) & uint32(_FOUR)
    return _floats_of_bytes(uint32(low | high))


@cuda.jit(device=True)
def _unpack_bytes(a: Any, b: Any, c: Any, d: Any, highs: Any, highs_2: Any, group: Any) -> Any:
    return _floats_of_bytes(a)


@cuda.jit(device=True)
def _unpack_halves(a: Any, b: Any, c: Any, d: Any, highs: Any, highs_2: Any, group: Any) -> Any:
    f0, f1 = half2_to_float2(a)
    f2, f3 = half2_to_float2(b)
    return f0, f1, f2, f3


@cuda.jit(device=True)
def _unpack_floats(a: Any, b: Any, c: Any, d: Any, highs: Any, highs_2: Any, group: Any) -> Any:
    return uint_as_float(a), uint_as_float(b), uint_as_float(c), uint_as_float(d)


@cuda.jit(device=True)
def _unpack_two(a: Any, b: Any, c: Any, d: Any, highs: Any, highs_2: Any, group: Any) -> Any:
    shift = uint32(group & 6)
    upper = uint32(a >> uint32(24))  # in common to the word's four groups
    return (
        uint_as_float(uint32(a & uint32(uint32(0x3) << shift))),
        uint_as_float(uint32(a & uint32(uint32(0x300) << shift))),
        uint_as_float(uint32(a & uint32(uint32(0x30000) << shift))),
        uint_as_float(uint32(upper & uint32(uint32(0x3) << shift))),
    )


@cache
def _unpack_values(type: GGMLType) -> Any:
    look_up_four = look_up(type)

    @cuda.jit(device=True)
    def unpack(a: Any, b: Any, c: Any, d: Any, highs: Any, highs_2: Any, group: Any) -> Any:
        return _floats_of_bytes(look_up_four(uint32(a >> uint32(16 * (group & 1)))))

    return unpack


@cuda.jit(device=True)
def _unpack_e2m1(a: Any, b: Any, c: Any, d: Any, highs: Any, highs_2: Any, group: Any) -> Any:
    return e2m1.four_floats(a, b, group & 3)


@cuda.jit(device=True)
def _word_by_word(group: Any) -> Any:
    return group & 3


@cuda.jit(device=True)
def _two_words(group: Any) -> Any:
    return group & 1


@cuda.jit(device=True)
def _halves_of_words(group: Any) -> Any:
    return group >> 1


@cuda.jit(device=True)
def _pairs_of_words(group: Any) -> Any:
    return group >> 2 << 1


@cuda.jit(device=True)
def _two_words_each(group: Any) -> Any:
    return 2 * group


class Lane(NamedTuple):
    """What a lane makes of the quants that it loads at a time.

    n_groups    groups of four weights in them
    unpack      the device function
    first_word  device function: which of the words loaded is a group's first
    n_words     words of a group
    n_loaded    words in all: a load of 16 bytes, or of 8
    n_highs     words of high bits beside them
    n_halves    runs that have a scale of their own
    """

    n_groups: int
    unpack: Any
    first_word: Any = _word_by_word
    n_words: int = 1
    n_loaded: int = 4
    n_highs: int = 0
    n_halves: int = 1

    @property
    def n_cols(self) -> int:
        return 4 * self.n_groups


LANES: Final = {
    GGMLType.F32: Lane(1, _unpack_floats, n_words=4),
    GGMLType.F16: Lane(2, _unpack_halves, _two_words_each, n_words=2),
    GGMLType.Q4_0: Lane(8, _unpack_nibbles),
    GGMLType.Q4_1: Lane(8, _unpack_nibbles),
    GGMLType.Q5_0: Lane(8, _unpack_with_bit(4), n_highs=1),
    GGMLType.Q5_1: Lane(8, _unpack_with_bit(4), n_highs=1),
    GGMLType.Q8_0: Lane(4, _unpack_bytes),
    GGMLType.Q2_K: Lane(8, _unpack_two, _two_words, n_loaded=2, n_halves=2),
    GGMLType.Q3_K: Lane(8, _unpack_with_bit(2), _two_words, n_loaded=2, n_highs=1, n_halves=2),
    GGMLType.Q4_K: Lane(8, _unpack_nibbles),
    GGMLType.Q5_K: Lane(8, _unpack_with_bit(4), n_highs=1),
    GGMLType.Q6_K: Lane(8, _unpack_six, n_highs=2, n_halves=2),
    GGMLType.MXFP4: Lane(8, _unpack_e2m1, _pairs_of_words, n_words=2),
    **{type: Lane(8, _unpack_values(type), _halves_of_words) for type in VALUES_OF},
}


def factor(type: GGMLType, group: int, k: int) -> float:
    """What undoes the position of the k-th quant of a group in its word; without STAGE_SCALE."""
    lane = LANES[type]
    if type in DENSE:
        return 1.0
    if lane.unpack is _unpack_e2m1:
        return 2.0**-149 / e2m1.UNIT
    if lane.unpack is _unpack_two:
        return 2.0 ** -(8 * (k % 3) + (group & 6))
    if k == 3:  # the last one of a word is shifted to its lowest bits
        return 1.0
    high_nibble = lane.unpack is _unpack_nibbles and group >= 4
    return 2.0 ** (-8 * k - (4 if high_nibble else 0))


@cache
def factors_of(type: GGMLType) -> Any:
    """factors(group) -> (f0, f1, f2, f3): by what to multiply the x that meet a group's quants."""
    scale = 1.0 if type in DENSE else STAGE_SCALE
    rows = [[np.float32(scale * factor(type, g, k)) for k in range(4)] for g in (0, 2, 4, 6)]
    (a0, a1, a2, a3), (b0, b1, b2, b3), (c0, c1, c2, c3), (d0, d1, d2, d3) = rows

    @cuda.jit(device=True, forceinline=True)
    def factors(group: Any) -> Any:
        if group >= 6:
            return d0, d1, d2, d3
        if group >= 4:
            return c0, c1, c2, c3
        if group >= 2:
            return b0, b1, b2, b3
        return a0, a1, a2, a3

    return factors
