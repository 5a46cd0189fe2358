"""Eight neighbouring elements of a cached key or value: as they are loaded, and as floats.

    eight.load(cache, scales, at, raw, i)      raw[i] = elements at, at + 1, ... at + 7: uint32
    low, high = eight.pair(raw, i, word)       elements 2 word and 2 word + 1, exact in FP32
    eight.scale(raw, i)                        by what to multiply them; of FP16 1, not to be used

FP16   cache float16[...], `scales` is not looked at: a load of 16 bytes
Q8_0   cache int8[..., head_dim], scales float16[..., head_dim / 32], a block's each: a load of 8
       bytes and one of 2. A quant times its scale has 19 bits: exact in FP32.

`at` counts elements from the array's first and is a multiple of 8; head_dim is one of 32 where
there are blocks, so that block at / 32 holds all eight.
"""

from functools import cache
from typing import Any, Final, NamedTuple

from numba import cuda, float32, int64, uint32

from m40llm.kernels.bits import half2_to_float2, permute_bytes, uint_as_float
from m40llm.kernels.intrinsics import (
    load_uint2_readonly,
    load_uint4_readonly,
    load_ushort_readonly,
)

_EXPONENT: Final = 0x4B000000  # of 2^23, where the last bit of the mantissa is worth 1
_OFFSET: Final = 2.0**23 + 128


class Eight(NamedTuple):
    """How a cache's elements come, eight at a time; see above. n_words: of a raw[i]."""

    n_words: int
    load: Any
    pair: Any
    scale: Any


@cuda.jit(device=True, forceinline=True)
def _load_halves(cache_: Any, scales: Any, at: Any, raw: Any, i: Any) -> None:
    raw[i, 0], raw[i, 1], raw[i, 2], raw[i, 3] = load_uint4_readonly(cache_, at)


@cuda.jit(device=True, forceinline=True)
def _pair_of_halves(raw: Any, i: Any, word: Any) -> Any:
    return half2_to_float2(raw[i, word])


@cuda.jit(device=True, forceinline=True)
def _one(raw: Any, i: Any) -> Any:
    return float32(1)


@cuda.jit(device=True, forceinline=True)
def _load_quants(cache_: Any, scales: Any, at: Any, raw: Any, i: Any) -> None:
    raw[i, 0], raw[i, 1] = load_uint2_readonly(cache_, at)
    raw[i, 2] = uint32(load_ushort_readonly(scales, int64(at) >> 5))


@cache
def _quant(byte: int) -> Any:
    """quant(word): a signed byte, by its place in the mantissa of 2^23 + 128 + quant: exact."""
    selectors = 0x7440 + byte  # the byte, 0, 0 and the exponent of 2^23

    @cuda.jit(device=True, forceinline=True)
    def quant(word: Any) -> Any:
        unsigned = uint32(word ^ uint32(0x80808080))
        bits = permute_bytes(unsigned, uint32(_EXPONENT), uint32(selectors))
        return uint_as_float(bits) - float32(_OFFSET)

    return quant


_FIRST, _SECOND, _THIRD, _FOURTH = map(_quant, range(4))


@cuda.jit(device=True, forceinline=True)
def _pair_of_quants(raw: Any, i: Any, word: Any) -> Any:
    four = raw[i, word >> 1]
    if word & 1:
        return _THIRD(four), _FOURTH(four)
    return _FIRST(four), _SECOND(four)


@cuda.jit(device=True, forceinline=True)
def _scale_of_quants(raw: Any, i: Any) -> Any:
    scale, _ = half2_to_float2(raw[i, 2])
    return scale


@cache
def eight_of(is_q8: bool) -> Eight:
    """The way of a cache in Q8_0, or of one in FP16."""
    if is_q8:
        return Eight(3, _load_quants, _pair_of_quants, _scale_of_quants)
    return Eight(4, _load_halves, _pair_of_halves, _one)
