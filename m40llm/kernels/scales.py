"""Scale and minimum of a run of quants, from the plane of scales; see plane_of_scales.py.

    words = fetch(scales, row, unit)                        what memory holds for 32 weights
    scale, minimum = decode(*words, unit, half)             weight = scale * quant + minimum

`unit` counts 32 weights of the row. `half` is 1 for the last 16 of them, which have a scale of
their own in Q2_K, Q3_K and Q6_K. `quant` is signed for the types without minimums (minimum = 0), a
value of the table for IQ4_*, twice the number for MXFP4. Scale and minimum are exact: a product of
an FP16 and at most 8 bits fits FP32, and MXFP4's scale is a power of two. Indices are made
unsigned: that spares Numba's test for a negative one, four instructions.
"""

from typing import Any, Final, NamedTuple

from gguf import GGMLQuantizationType as GGMLType
from numba import cuda, float32, int32, int64, uint32, uint64

from m40llm.kernels.bits import half2_to_float2, uint_as_float
from m40llm.kernels.intrinsics import load_uint2_readonly, load_uint4_readonly


@cuda.jit(device=True)
def _fetch_one(scales: Any, row: Any, unit: Any) -> Any:
    return uint32(scales[uint64(row), uint32(unit)]), uint32(0), uint32(0), uint32(0)


@cuda.jit(device=True)
def _fetch_k(scales: Any, row: Any, unit: Any) -> Any:
    row_loads = uint32(uint32(scales.shape[1]) >> uint32(2))
    at = uint32(uint32(row) * row_loads + (uint32(unit) >> uint32(3)))  # in 16 bytes: up to 64 GB
    return load_uint4_readonly(scales, int64(at) * 4)


@cuda.jit(device=True)
def _fetch_q2_k(scales: Any, row: Any, unit: Any) -> Any:
    first = uint32((uint32(unit) >> uint32(3)) * uint32(5))
    pair = uint32((uint32(unit) & uint32(7)) >> uint32(1))  # of units, in a word
    word = uint32(scales[uint64(row), uint32(first + pair)])
    mine = uint32(word >> uint32((uint32(unit) & uint32(1)) << uint32(4)))
    return mine, uint32(scales[uint64(row), uint32(first + uint32(4))]), uint32(0), uint32(0)


@cuda.jit(device=True)
def _fetch_q3_k(scales: Any, row: Any, unit: Any) -> Any:
    first = uint32((uint32(unit) >> uint32(3)) * uint32(7))
    inside = uint32(uint32(unit) & uint32(7))
    return (
        uint32(scales[uint64(row), uint32(first + (inside >> uint32(1)))]),
        uint32(scales[uint64(row), uint32(first + uint32(4) + (inside >> uint32(2)))]),
        uint32(scales[uint64(row), uint32(first + uint32(6))]),
        uint32(0),
    )


@cuda.jit(device=True)
def _fetch_iq4_xs(scales: Any, row: Any, unit: Any) -> Any:
    row_loads = uint32(uint32(scales.shape[1]) >> uint32(1))
    at = uint32(uint32(row) * row_loads + (uint32(unit) >> uint32(3)))  # in 8 bytes: up to 32 GB
    a, b = load_uint2_readonly(scales, int64(at) * 2)
    return a, b, uint32(0), uint32(0)


@cuda.jit(device=True)
def _fetch_q6_k(scales: Any, row: Any, unit: Any) -> Any:
    first = (unit >> 3) * 9
    return (
        uint32(scales[uint64(row), uint32(first + (unit & 7))]),
        uint32(scales[uint64(row), uint32(first + 8)]),
        uint32(0),
        uint32(0),
    )


@cuda.jit(device=True)
def _fetch_none(scales: Any, row: Any, unit: Any) -> Any:
    return uint32(0), uint32(0), uint32(0), uint32(0)


@cuda.jit(device=True)
def _decode_half(a: Any, b: Any, c: Any, d: Any, unit: Any, half: Any) -> Any:
    scale, _ = half2_to_float2(a)
    return scale, float32(0.0)


@cuda.jit(device=True)
def _decode_half2(a: Any, b: Any, c: Any, d: Any, unit: Any, half: Any) -> Any:
    return half2_to_float2(a)


@cuda.jit(device=True)
def _decode_k(a: Any, b: Any, c: Any, d: Any, unit: Any, half: Any) -> Any:
    shift = uint32((unit & 7) * 4)
    high = uint32(d >> shift)
    scale = uint32(b >> shift) & uint32(15) | (high & uint32(3)) << uint32(4)
    minimum = uint32(c >> shift) & uint32(15) | (high & uint32(12)) << uint32(2)
    d_scale, d_minimum = half2_to_float2(a)
    return d_scale * float32(uint32(scale)), -(d_minimum * float32(uint32(minimum)))


@cuda.jit(device=True)
def _decode_q2_k(a: Any, b: Any, c: Any, d: Any, unit: Any, half: Any) -> Any:
    byte = uint32(a >> uint32(8 * half))
    d_scale, d_minimum = half2_to_float2(b)
    scale = d_scale * float32(uint32(byte & uint32(15)))
    return scale, -(d_minimum * float32(uint32(uint32(byte >> uint32(4)) & uint32(15))))


@cuda.jit(device=True)
def _signed_six(low: Any, high: Any) -> Any:
    """A scale of four low bits and two high ones, 32 less than they say."""
    return float32(int32(int32(uint32(low | high << uint32(4))) - int32(32)))


@cuda.jit(device=True)
def _decode_q3_k(a: Any, b: Any, c: Any, d: Any, unit: Any, half: Any) -> Any:
    run = uint32(uint32(unit & 7) * uint32(2) + uint32(half))
    low = uint32(a >> uint32(uint32(run & uint32(3)) * uint32(4))) & uint32(15)
    high = uint32(b >> uint32(uint32(run & uint32(7)) * uint32(2))) & uint32(3)
    d_scale, _ = half2_to_float2(c)
    return d_scale * _signed_six(low, high), float32(0.0)


@cuda.jit(device=True)
def _decode_iq4_xs(a: Any, b: Any, c: Any, d: Any, unit: Any, half: Any) -> Any:
    inside = uint32(unit & 7)
    low = uint32(b >> uint32(inside * uint32(4))) & uint32(15)
    high = uint32(a >> uint32(uint32(16) + inside * uint32(2))) & uint32(3)
    d_scale, _ = half2_to_float2(a)
    return d_scale * _signed_six(low, high), float32(0.0)


@cuda.jit(device=True)
def power_of_two(exponent: Any) -> Any:
    """2^(exponent - 128), the scale of MXFP4's doubled values: exponent a byte."""
    subnormal = int32(int32(exponent + uint32(1)) << 21)  # the bits for 0 and 1, too few for others
    normal = int32(int32(exponent - uint32(1)) << 23)  # the bits for 2 and more, too few for those
    return uint_as_float(uint32(max(subnormal, normal)))


@cuda.jit(device=True)
def _decode_mxfp4(a: Any, b: Any, c: Any, d: Any, unit: Any, half: Any) -> Any:
    return power_of_two(a), float32(0.0)


@cuda.jit(device=True)
def _decode_q6_k(a: Any, b: Any, c: Any, d: Any, unit: Any, half: Any) -> Any:
    byte = uint32(a >> uint32(8 * half)) & uint32(255)
    d_scale, _ = half2_to_float2(b)
    return d_scale * float32(int32(byte ^ uint32(128)) - int32(128)), float32(0.0)


@cuda.jit(device=True)
def _decode_none(a: Any, b: Any, c: Any, d: Any, unit: Any, half: Any) -> Any:
    return float32(1.0), float32(0.0)


class Scales(NamedTuple):
    """Device functions of a type, and whether its weights have a minimum."""

    fetch: Any
    decode: Any
    has_minimum: bool = False


SCALES: Final = {
    GGMLType.F32: Scales(_fetch_none, _decode_none),
    GGMLType.F16: Scales(_fetch_none, _decode_none),
    GGMLType.Q4_0: Scales(_fetch_one, _decode_half),
    GGMLType.Q4_1: Scales(_fetch_one, _decode_half2, has_minimum=True),
    GGMLType.Q5_0: Scales(_fetch_one, _decode_half),
    GGMLType.Q5_1: Scales(_fetch_one, _decode_half2, has_minimum=True),
    GGMLType.Q8_0: Scales(_fetch_one, _decode_half),
    GGMLType.Q2_K: Scales(_fetch_q2_k, _decode_q2_k, has_minimum=True),
    GGMLType.Q3_K: Scales(_fetch_q3_k, _decode_q3_k),
    GGMLType.Q4_K: Scales(_fetch_k, _decode_k, has_minimum=True),
    GGMLType.Q5_K: Scales(_fetch_k, _decode_k, has_minimum=True),
    GGMLType.Q6_K: Scales(_fetch_q6_k, _decode_q6_k),
    GGMLType.IQ4_NL: Scales(_fetch_one, _decode_half),
    GGMLType.IQ4_XS: Scales(_fetch_iq4_xs, _decode_iq4_xs),
    GGMLType.MXFP4: Scales(_fetch_one, _decode_mxfp4),
}
# What is subtracted from the quant as it is stored, or from the table's byte, for the types without
# a minimum.
BIAS: Final = {
    GGMLType.Q4_0: 8,
    GGMLType.Q5_0: 16,
    GGMLType.Q8_0: 128,
    GGMLType.Q3_K: 4,
    GGMLType.Q6_K: 32,
    GGMLType.IQ4_NL: 128,
    GGMLType.IQ4_XS: 128,
}


def has_offset(type: GGMLType) -> bool:
    """Whether something meets the sum of x over a run: a minimum or a bias."""
    return type in BIAS or SCALES[type].has_minimum


def sum_factor(type: GGMLType) -> float:
    """What staged sums of x are multiplied by: -bias, exactly, so that the products of a run with
    quants as they are stored can begin with it; 1 for what meets a minimum."""
    return -float(BIAS.get(type, -1))
