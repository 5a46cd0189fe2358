"""Philox4x64-10 (Salmon et al., 2011): random numbers from a key and a counter alone.

The first number of numpy.random.Philox(key=seed, counter=[0, 0, 0, pos]), which steps its
counter to [1, 0, 0, pos] before it draws. 64-bit integers, no state.
"""

from typing import Any, Final

from numba import cuda, uint64

_MULTIPLIER_0: Final = 0xD2E7470EE14C6C93
_MULTIPLIER_1: Final = 0xCA5A826395121157
_WEYL_0: Final = 0x9E3779B97F4A7C15
_WEYL_1: Final = 0xBB67AE8584CAA73B
_N_ROUNDS: Final = 10
_LOW: Final = 0xFFFFFFFF


@cuda.jit(device=True)
def mul_high(a: Any, b: Any) -> Any:
    """The upper 64 bits of the product of two uint64."""
    low, half = uint64(_LOW), uint64(32)
    a_low, a_high = a & low, a >> half
    b_low, b_high = b & low, b >> half
    middle = a_high * b_low + ((a_low * b_low) >> half)
    carry = a_low * b_high + (middle & low)
    return a_high * b_high + (middle >> half) + (carry >> half)


@cuda.jit(device=True)
def uniform_bits(seed: Any, pos: Any) -> Any:
    """64 random bits of (seed, pos): uint64, uint64 -> uint64"""
    c0, c1, c2, c3 = uint64(1), uint64(0), uint64(0), uint64(pos)
    key_0, key_1 = uint64(seed), uint64(0)
    for _ in range(_N_ROUNDS):
        high_0, low_0 = mul_high(uint64(_MULTIPLIER_0), c0), uint64(_MULTIPLIER_0) * c0
        high_1, low_1 = mul_high(uint64(_MULTIPLIER_1), c2), uint64(_MULTIPLIER_1) * c2
        c0, c1, c2, c3 = high_1 ^ c1 ^ key_0, low_1, high_0 ^ c3 ^ key_1, low_0
        key_0, key_1 = key_0 + uint64(_WEYL_0), key_1 + uint64(_WEYL_1)
    return c0
