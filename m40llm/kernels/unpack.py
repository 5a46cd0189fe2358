"""Four quants of a word as four floats, in one instruction each and no conversion.

An FP32 number whose bits are an integer n below 2^24 is the number n * 2^-149, a subnormal or
just above: masking a quant where it stands in its word gives quant * 2^(position - 149), exactly,
and the FMA units multiply subnormals at full speed. The factor is undone in x: whoever stages x
multiplies the four numbers that meet these four by STAGE_SCALE * factor(group, k), powers of two,
and a sum of products comes out multiplied by RESULT_SCALE. Never compile this with fastmath: it
flushes subnormals to zero.

    f0, f1, f2, f3 = unpack(a, b, c, d, highs, highs_2, group)

`group` says which four of a lane's run of quants (8 groups in 32 weights, 4 in the 16 of Q8_0, 2
in the 8 of F16, 1 in the 4 of F32); a..d are words of quants from the group's first one on, of
which most types need one. F16 and F32 are numbers already; their factor is 1.
"""

from typing import Any, Final, NamedTuple

from gguf import GGMLQuantizationType as GGMLType
from numba import cuda, uint32

from m40llm.kernels.intrinsics import half2_to_float2, uint_as_float

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


@cuda.jit(device=True)
def _unpack_five(a: Any, b: Any, c: Any, d: Any, highs: Any, highs_2: Any, group: Any) -> Any:
    bit = 2 * (group & 3) + (group >> 2)  # of the group's high bits in each byte; wanted at 4
    if bit < 4:
        high = uint32(highs << uint32(4 - bit)) & uint32(0x10101010)
    else:
        high = uint32(highs >> uint32(bit - 4)) & uint32(0x10101010)
    low = uint32(a >> uint32(group & 4)) & uint32(_FOUR)
    return _floats_of_bytes(uint32(low | high))


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


class Lane(NamedTuple):
    """What a lane makes of its 16 bytes of quants.

    n_groups    groups of four weights in them
    unpack      the device function
    n_words     words of a group
    n_highs     words of high bits beside the 16 bytes
    n_halves    runs that have a scale of their own
    """

    n_groups: int
    unpack: Any
    n_words: int = 1
    n_highs: int = 0
    n_halves: int = 1

    @property
    def n_cols(self) -> int:
        return 4 * self.n_groups


LANES: Final = {
    GGMLType.F32: Lane(1, _unpack_floats, n_words=4),
    GGMLType.F16: Lane(2, _unpack_halves, n_words=2),
    GGMLType.Q4_0: Lane(8, _unpack_nibbles),
    GGMLType.Q4_1: Lane(8, _unpack_nibbles),
    GGMLType.Q5_0: Lane(8, _unpack_five, n_highs=1),
    GGMLType.Q5_1: Lane(8, _unpack_five, n_highs=1),
    GGMLType.Q8_0: Lane(4, _unpack_bytes),
    GGMLType.Q4_K: Lane(8, _unpack_nibbles),
    GGMLType.Q5_K: Lane(8, _unpack_five, n_highs=1),
    GGMLType.Q6_K: Lane(8, _unpack_six, n_highs=2, n_halves=2),
}


def factor(type: GGMLType, group: int, k: int) -> float:
    """What undoes the position of the k-th quant of a group in its word; without STAGE_SCALE."""
    lane = LANES[type]
    if lane.n_words > 1 or k == 3:  # the last one of a word is shifted to its lowest bits
        return 1.0
    high_nibble = lane.unpack is _unpack_nibbles and group >= 4
    return 2.0 ** (-8 * k - (4 if high_nibble else 0))
