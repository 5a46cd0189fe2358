"""Scale and minimum of a run of quants, from the plane of scales; see planes.py for its layout.

    words = fetch(scales, row, unit)                        what memory holds for 32 weights
    scale, minimum = decode(*words, unit, half)             weight = scale * quant + minimum

`unit` counts 32 weights of the row. `half` is 1 for the last 16 of them, which have a scale of
their own in Q6_K alone. `quant` is signed for the types without minimums (minimum = 0). Scale and
minimum are exact: a product of an FP16 and at most 8 bits fits FP32. Indices are made unsigned:
that spares Numba's test for a negative one, four instructions.
"""

from typing import Any, Final, NamedTuple

from gguf import GGMLQuantizationType as GGMLType
from numba import cuda, float32, int32, int64, uint32, uint64

from m40llm.kernels.intrinsics import half2_to_float2, load_uint4_readonly


@cuda.jit(device=True)
def _fetch_one(scales: Any, row: Any, unit: Any) -> Any:
    return uint32(scales[uint64(row), uint32(unit)]), uint32(0), uint32(0), uint32(0)


@cuda.jit(device=True)
def _fetch_k(scales: Any, row: Any, unit: Any) -> Any:
    row_loads = uint32(uint32(scales.shape[1]) >> uint32(2))
    at = uint32(uint32(row) * row_loads + (uint32(unit) >> uint32(3)))  # in 16 bytes: up to 64 GB
    return load_uint4_readonly(scales, int64(at) * 4)


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
    GGMLType.Q4_K: Scales(_fetch_k, _decode_k, has_minimum=True),
    GGMLType.Q5_K: Scales(_fetch_k, _decode_k, has_minimum=True),
    GGMLType.Q6_K: Scales(_fetch_q6_k, _decode_q6_k),
}
# What is subtracted from the quant as it is stored, for the types without a minimum.
BIAS: Final = {GGMLType.Q4_0: 8, GGMLType.Q5_0: 16, GGMLType.Q8_0: 128, GGMLType.Q6_K: 32}
