"""MXFP4's quants (E2M1: a sign, two bits of exponent, one of mantissa) as floats, without a table.

With its sign in bit 31 and its other bits in 24 to 22 such a number is an FP32 one, 2^-126 times
itself: subnormal where its exponent is 0, exact in any case. So a quant whose sign lies nine bits
above its lowest bit becomes a float by a rotation and a mask. Quants of four bits cannot fill a
word in that shape; two words hold 16 of them so:

    six of eight in a word of their own    rotated left by OWN
    two of each eight in a third word,     first + 4 * second, mod 2^32, rotated left by SHARED,
    which is not stored                    and 16 more for the second eight

The third word has theirs in four runs of four bits. The words that are stored have two bits free
beneath each run, whose sum is what puts it there: `pack` finds them, carries and all.

    words = pack(codes)           uint8[n, 16], quants of the file -> uint32[n, 2]
    codes = unpack(words)         the inverse
    f0, f1, f2, f3 = four_floats(first, second, group)     on the device: group 0 to 3 of the 16
    weights = eight_floats(first, second, half, floats)    on the device: of one eight
"""

from typing import Any, Final

import numpy as np
from numba import cuda, float32, uint32
from numpy.typing import NDArray

from m40llm.kernels.bits import uint_as_float

UNIT: Final = 2.0**-127  # what a float is multiplied by, of values that are doubled: -12 to 12
_MASK: Final = 0x81C00000
OWN: Final = (0, 4, 10, 16, 20, 26)
SHARED: Final = (6, 12)
_RUNS: Final = (0, 9, 16, 25)  # of four bits in the third word: two of the first word's, two above
_FREE: Final = np.uint32(sum(3 << at for at in _RUNS))  # bits of either word

Words = NDArray[np.uint32]


def pack(codes: NDArray[np.uint8]) -> Words:
    """uint32[n, 2] of uint8[n, 16]: bit 3 is the sign, as in the file."""
    words = np.zeros((len(codes), 2), np.uint32)
    third = np.zeros(len(codes), np.uint32)
    for half in range(2):
        for k in range(8):
            placed = _placed(_rotation(half, k))[codes[:, 8 * half + k]]
            into = words[:, half] if k < len(OWN) else third
            into |= placed
    free = np.zeros(len(codes), np.uint32)
    for at in map(np.uint32, _RUNS):
        so_far = words[:, 0] + (words[:, 1] << np.uint32(2)) + free
        free += ((third >> at) - (so_far >> at) & np.uint32(15)) << at
    words[:, 0] |= free & _FREE
    words[:, 1] |= free >> np.uint32(2) & _FREE
    return words


def unpack(words: Words) -> NDArray[np.uint8]:
    """uint8[n, 16] of uint32[n, 2]."""
    third = words[:, 0] + (words[:, 1] << np.uint32(2))
    codes = np.empty((len(words), 16), np.uint8)
    for half in range(2):
        for k in range(8):
            bits = _rotated(words[:, half] if k < len(OWN) else third, _rotation(half, k))
            codes[:, 8 * half + k] = bits >> np.uint32(28) & 8 | bits >> np.uint32(22) & 7
    return codes


def _rotation(half: int, k: int) -> int:
    """Which brings quant k of an eight into place, to the left."""
    return OWN[k] if k < len(OWN) else SHARED[k - len(OWN)] + 16 * half


def _placed(rotation: int) -> Words:
    """Of each of the 16 numbers, its bits where `rotation` finds them."""
    codes = np.arange(16, dtype=np.uint32)
    in_place = (codes & np.uint32(8)) << np.uint32(28) | (codes & np.uint32(7)) << np.uint32(22)
    return _rotated(in_place, 32 - rotation)


def _rotated(words: Words, left: int) -> Words:
    rotated: Words = words << np.uint32(left % 32) | words >> np.uint32(-left % 32)
    return rotated


@cuda.jit(device=True, forceinline=True)
def float_of(code: Any) -> Any:
    """UNIT times the value of one quant, uint32."""
    bits = (code & uint32(8)) << uint32(28) | (code & uint32(7)) << uint32(22)
    return uint_as_float(uint32(bits))


@cuda.jit(device=True, forceinline=True)
def scaled(found: Any, scale: Any) -> Any:
    """scale times the value whose float is `found`; of no sign where it is zero, as gguf.quants."""
    return scale * (found * float32(1.0 / UNIT)) + float32(0)


@cuda.jit(device=True, forceinline=True)
def _float_at(word: Any, rotation: Any) -> Any:
    """Of the quant that this rotation to the left, a literal not 0, brings into place."""
    turned = uint32(word << uint32(rotation)) | uint32(word >> uint32(32 - rotation))
    return uint_as_float(uint32(turned & uint32(_MASK)))


@cuda.jit(device=True, forceinline=True)
def _third_word(first: Any, second: Any) -> Any:
    return uint32(first + uint32(second << uint32(2)))


@cuda.jit(device=True, forceinline=True)
def four_floats(first: Any, second: Any, group: Any) -> Any:
    """Of the four quants of a group, 0 to 3 of two words, a literal: UNIT times the values."""
    own = second if group & 2 else first
    if group & 1:
        third = _third_word(first, second)
        more = 16 if group & 2 else 0
        return (
            _float_at(own, 20),
            _float_at(own, 26),
            _float_at(third, 6 + more),
            _float_at(third, 12 + more),
        )
    return (
        uint_as_float(uint32(own & uint32(_MASK))),
        _float_at(own, 4),
        _float_at(own, 10),
        _float_at(own, 16),
    )


@cuda.jit(device=True, forceinline=True)
def eight_floats(first: Any, second: Any, half: Any, floats: Any) -> None:
    """Of the eight quants of a half, 0 or 1, not a literal: UNIT times the values."""
    own, third = first, _third_word(first, second)
    if half:
        own, third = second, uint32(third << uint32(16)) | uint32(third >> uint32(16))
    floats[0] = uint_as_float(uint32(own & uint32(_MASK)))
    floats[1], floats[2], floats[3] = _float_at(own, 4), _float_at(own, 10), _float_at(own, 16)
    floats[4], floats[5] = _float_at(own, 20), _float_at(own, 26)
    floats[6], floats[7] = _float_at(third, 6), _float_at(third, 12)
