"""Eight weights of a row at a time, from planes or dense: bit for bit as gguf.quants has them.

    raw, weights = cuda.local.array(8, uint32), cuda.local.array(8, float32)
    row_at = row_start(type)(quants, row)                   where the row begins; once for a row
    fetch(type)(quants, highs, scales, row, row_at, col, n_cols, raw)   loads, to be issued early
    convert(type)(raw, col, weights)                        W[row, col : col + 8]

col is a multiple of 8 and below n_cols, the columns of the matrix. F32 may end after four: the
others are then 0. A quant becomes a float by its place in the mantissa of 2^23 + quant, exactly.
The one rounding is that of adding the minimum, as in gguf.quants.
"""

from functools import cache
from typing import Any, Final

from gguf import GGMLQuantizationType as GGMLType
from numba import cuda, float32, int64, uint32, uint64

from m40llm.kernels.intrinsics import (
    half2_to_float2,
    load_uint2_readonly,
    load_uint4_readonly,
    uint_as_float,
)
from m40llm.kernels.planes import DENSE, LAYOUTS
from m40llm.kernels.scales import BIAS, SCALES

_EXPONENT: Final = 0x4B000000  # of 2^23, where the last bit of the mantissa is worth 1


@cache
def row_start(type: GGMLType) -> Any:
    """row_start(quants, row): in loads of 16 bytes for dense types (up to 64 GB), 8 for quants."""
    shift = 2 if type in DENSE else 1

    @cuda.jit(device=True, forceinline=True)
    def start(quants: Any, row: Any) -> Any:
        return uint32(uint32(row) * uint32(uint32(quants.shape[1]) >> uint32(shift)))

    return start


@cuda.jit(device=True, forceinline=True)
def _fetch_f16(
    quants: Any, highs: Any, scales: Any, row: Any, row_at: Any, col: Any, n_cols: Any, raw: Any
) -> None:
    at = uint32(row_at + (uint32(col) >> uint32(3)))
    raw[0], raw[1], raw[2], raw[3] = load_uint4_readonly(quants, int64(at) * 4)


@cuda.jit(device=True, forceinline=True)
def _fetch_f32(
    quants: Any, highs: Any, scales: Any, row: Any, row_at: Any, col: Any, n_cols: Any, raw: Any
) -> None:
    at = int64(uint32(row_at + (uint32(col) >> uint32(2)))) * 4
    raw[0], raw[1], raw[2], raw[3] = load_uint4_readonly(quants, at)
    raw[4], raw[5], raw[6], raw[7] = uint32(0), uint32(0), uint32(0), uint32(0)
    if col + 4 < n_cols:
        raw[4], raw[5], raw[6], raw[7] = load_uint4_readonly(quants, at + 4)


@cache
def fetch(type: GGMLType) -> Any:
    """The device function that loads what eight weights are made of."""
    if type in DENSE:
        return _fetch_f32 if type == GGMLType.F32 else _fetch_f16
    n_bits, fetch_scales = LAYOUTS[type].n_bits, SCALES[type].fetch
    n_highs, unit_words = n_bits - 4 if n_bits < 8 else 0, 8 if n_bits == 8 else 4

    @cuda.jit(device=True, forceinline=True)
    def fetch_quants(
        quants: Any, highs: Any, scales: Any, row: Any, row_at: Any, col: Any, n_cols: Any, raw: Any
    ) -> None:  # fmt: skip
        unit = uint32(uint32(col) >> uint32(5))
        word = uint32(uint32(col) >> uint32(2)) & uint32(7 if n_bits == 8 else 3)
        at = uint32(row_at + unit * uint32(unit_words // 2) + (word >> uint32(1)))
        raw[0], raw[1] = load_uint2_readonly(quants, int64(at) * 2)
        if n_highs > 0:
            high = unit * n_highs + (word >> 1) * (n_highs - 1)
            raw[2] = highs[uint64(row), uint32(high)]
        raw[4], raw[5], raw[6], raw[7] = fetch_scales(scales, row, unit)

    return fetch_quants


@cuda.jit(device=True, forceinline=True)
def _convert_f16(raw: Any, col: Any, weights: Any) -> None:
    for pair in range(4):
        weights[2 * pair], weights[2 * pair + 1] = half2_to_float2(raw[pair])


@cuda.jit(device=True, forceinline=True)
def _convert_f32(raw: Any, col: Any, weights: Any) -> None:
    for k in range(8):
        weights[k] = uint_as_float(raw[k])


@cache
def convert(type: GGMLType) -> Any:
    """The device function that makes eight floats of it."""
    if type in DENSE:
        return _convert_f32 if type == GGMLType.F32 else _convert_f16
    n_bits, (_, decode, has_minimum) = LAYOUTS[type].n_bits, SCALES[type]
    zero = 2.0**23 + BIAS.get(type, 0)

    @cuda.jit(device=True, forceinline=True)
    def convert_quants(raw: Any, col: Any, weights: Any) -> None:
        half, first_word = (col >> 4) & 1, (col >> 2) & 3
        scale, minimum = decode(raw[4], raw[5], raw[6], raw[7], col >> 5, half)
        for w in range(2):
            quants = raw[w]
            if n_bits < 8:
                quants = uint32(quants >> uint32(4 * half)) & uint32(0x0F0F0F0F)
            if n_bits == 5:
                bit = uint32(2 * (first_word + w) + half)
                quants |= (uint32(raw[2] >> bit) & uint32(0x01010101)) << uint32(4)
            if n_bits == 6:
                bit = uint32(4 * w + 2 * half)
                quants |= (uint32(raw[2] >> bit) & uint32(0x03030303)) << uint32(4)
            for k in range(4):
                byte = uint32(quants >> uint32(8 * k)) & uint32(255)
                quant = uint_as_float(uint32(byte | uint32(_EXPONENT))) - float32(zero)
                weight = scale * quant
                weights[4 * w + k] = weight + minimum if has_minimum else weight

    return convert_quants
