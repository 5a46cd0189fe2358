"""Eight weights of a row at a time, from planes or dense: bit for bit as gguf.quants has them.

    raw, words = cuda.local.array(8, uint32), cuda.local.array(4, uint32)
    row_at = row_start(type)(quants, row)                       where the row begins; once for a row
    fetch(type)(quants, highs, row, row_at, col, n_cols, raw)   loads, to be issued early
    fetch_scales(type)(scales, row, col, words)                 and those of 16 columns' scale
    scale, minimum = decode_scales(type)(words, col)            of the same
    convert(type)(raw, scale, minimum, col, weights)            W[row, col : col + 8], float32[8]

col is a multiple of 8 and below n_cols, the columns of the matrix; columns from one multiple of 16
to the next have the same scale. F32 may end after four: the others are then 0. A quant becomes a
float by its place in the mantissa of 2^23 + quant, exactly (MXFP4's as e2m1.py says). The one
rounding is that of adding the minimum, as in gguf.quants.
"""

from functools import cache
from typing import Any, Final

from gguf import GGMLQuantizationType as GGMLType
from numba import cuda, float32, int64, uint32, uint64

from m40llm.kernels import e2m1
from m40llm.kernels.bits import half2_to_float2, permute_bytes, uint_as_float
from m40llm.kernels.intrinsics import load_uint2_readonly, load_uint4_readonly, load_uint_readonly
from m40llm.kernels.layouts import DENSE, LAYOUTS, VALUES_OF
from m40llm.kernels.scales import BIAS, SCALES
from m40llm.kernels.tables import look_up

_EXPONENT: Final = 0x4B000000  # of 2^23, where the last bit of the mantissa is worth 1
_LAST_BYTE: Final = 0x7440  # selects: a byte of the quants below the exponent's three


@cache
def row_start(type: GGMLType) -> Any:
    """row_start(quants, row): in loads of 16 bytes for dense types (up to 64 GB), 8 for quants, 4
    where a word has eight of them."""
    shift = 2 if type in DENSE else 0 if type in VALUES_OF else 1

    @cuda.jit(device=True, forceinline=True)
    def start(quants: Any, row: Any) -> Any:
        return uint32(uint32(row) * uint32(uint32(quants.shape[1]) >> uint32(shift)))

    return start


@cuda.jit(device=True, forceinline=True)
def _fetch_f16(
    quants: Any, highs: Any, row: Any, row_at: Any, col: Any, n_cols: Any, raw: Any
) -> None:
    at = uint32(row_at + (uint32(col) >> uint32(3)))
    raw[0], raw[1], raw[2], raw[3] = load_uint4_readonly(quants, int64(at) * 4)


@cuda.jit(device=True, forceinline=True)
def _fetch_f32(
    quants: Any, highs: Any, row: Any, row_at: Any, col: Any, n_cols: Any, raw: Any
) -> None:
    at = int64(uint32(row_at + (uint32(col) >> uint32(2)))) * 4
    raw[0], raw[1], raw[2], raw[3] = load_uint4_readonly(quants, at)
    raw[4], raw[5], raw[6], raw[7] = uint32(0), uint32(0), uint32(0), uint32(0)
    if col + 4 < n_cols:
        raw[4], raw[5], raw[6], raw[7] = load_uint4_readonly(quants, at + 4)


@cache
def fetch(type: GGMLType) -> Any:
    """The device function that loads what eight weights are made of, but for their scale."""
    if type in DENSE:
        return _fetch_f32 if type == GGMLType.F32 else _fetch_f16
    layout, is_of_values = LAYOUTS[type], type in VALUES_OF
    unit_words, n_highs = layout.unit_words, layout.high_bits
    word_shift = 3 if type == GGMLType.MXFP4 else 2

    @cuda.jit(device=True, forceinline=True)
    def fetch_quants(
        quants: Any, highs: Any, row: Any, row_at: Any, col: Any, n_cols: Any, raw: Any
    ) -> None:
        unit = uint32(uint32(col) >> uint32(5))
        word = uint32(uint32(col) >> uint32(word_shift)) & uint32(unit_words - 1)
        if is_of_values:
            raw[0] = load_uint_readonly(quants, int64(row_at + (uint32(col) >> uint32(3))))
        else:
            at = uint32(row_at + unit * uint32(unit_words // 2) + (word >> uint32(1)))
            raw[0], raw[1] = load_uint2_readonly(quants, int64(at) * 2)
        if n_highs > 0:
            high = unit * n_highs + (word >> 1) * (n_highs - 1)
            raw[2] = highs[uint64(row), uint32(high)]

    return fetch_quants


@cache
def fetch_both(type: GGMLType) -> Any:
    """fetch_both(quants, row_at, col, raw): what the two eights of 16 columns are made of, in one
    load, of a quantised type without high bits; col is a multiple of 16."""
    unit_words, is_of_values = LAYOUTS[type].unit_words, type in VALUES_OF

    @cuda.jit(device=True, forceinline=True)
    def fetch_quants(quants: Any, row_at: Any, col: Any, raw: Any) -> None:
        unit, half = uint32(uint32(col) >> uint32(5)), uint32(uint32(col) >> uint32(4)) & uint32(1)
        if is_of_values:
            at = uint32(row_at + (uint32(col) >> uint32(3)))
            raw[0], raw[1] = load_uint2_readonly(quants, int64(at))
        elif unit_words == 2:
            raw[0], raw[1] = load_uint2_readonly(quants, int64(uint32(row_at + unit)) * 2)
        elif type == GGMLType.MXFP4:
            at = uint32(row_at + unit * uint32(2) + half)
            raw[0], raw[1] = load_uint2_readonly(quants, int64(at) * 2)
        else:
            at = uint32(row_at + unit * uint32(unit_words // 2))
            if unit_words == 8:
                at = uint32(at + half * uint32(2))
            raw[0], raw[1], raw[2], raw[3] = load_uint4_readonly(quants, int64(at) * 2)

    return fetch_quants


@cache
def pick_half(type: GGMLType) -> Any:
    """pick(raw, half, one): of what fetch_both has loaded, what fetch would."""
    is_of_values = type in VALUES_OF
    has_two_words = LAYOUTS[type].unit_words == 2 or type == GGMLType.MXFP4

    @cuda.jit(device=True, forceinline=True)
    def pick(raw: Any, half: Any, one: Any) -> None:
        if is_of_values:
            one[0] = raw[half]
        elif has_two_words:
            one[0], one[1] = raw[0], raw[1]
        else:
            one[0], one[1] = raw[2 * half], raw[2 * half + 1]

    return pick


@cache
def fetch_scales(type: GGMLType) -> Any:
    """The device function that loads what a scale is made of."""
    fetch_words = SCALES[type].fetch

    @cuda.jit(device=True, forceinline=True)
    def fetch_of_column(scales: Any, row: Any, col: Any, words: Any) -> None:
        unit = uint32(uint32(col) >> uint32(5))
        words[0], words[1], words[2], words[3] = fetch_words(scales, row, unit)

    return fetch_of_column


@cache
def decode_scales(type: GGMLType) -> Any:
    """The device function that makes a scale and a minimum of it."""
    decode = SCALES[type].decode

    @cuda.jit(device=True, forceinline=True)
    def decode_words(words: Any, col: Any) -> Any:
        return decode(words[0], words[1], words[2], words[3], col >> 5, (col >> 4) & 1)

    return decode_words


@cuda.jit(device=True, forceinline=True)
def _convert_f16(raw: Any, scale: Any, minimum: Any, col: Any, weights: Any) -> None:
    for pair in range(4):
        weights[2 * pair], weights[2 * pair + 1] = half2_to_float2(raw[pair])


@cuda.jit(device=True, forceinline=True)
def _convert_f32(raw: Any, scale: Any, minimum: Any, col: Any, weights: Any) -> None:
    for k in range(8):
        weights[k] = uint_as_float(raw[k])


@cache
def _four_quants(type: GGMLType) -> Any:
    """four_quants(raw, group, w) -> bytes: of group + w, group even, of 32 weights, where planes.py
    says."""
    layout = LAYOUTS[type]
    if type in VALUES_OF:
        look_up_four = look_up(type)

        @cuda.jit(device=True, forceinline=True)
        def values(raw: Any, group: Any, w: Any) -> Any:
            return look_up_four(uint32(raw[0] >> uint32(16 * w)))

        return values
    field_bits, high_bits, n_words = layout.field_bits, layout.high_bits, layout.unit_words
    fields, highs = ((2**n - 1) * 0x01010101 for n in (field_bits, high_bits))

    @cuda.jit(device=True, forceinline=True)
    def quants(raw: Any, group: Any, w: Any) -> Any:
        field = group // uint32(n_words)
        found = uint32(raw[w] >> uint32(field * uint32(field_bits))) & uint32(fields)
        if high_bits == 1:
            g = uint32(group + uint32(w))
            bit = uint32((g & uint32(3)) * uint32(2) + (g >> uint32(2)))
            found |= (uint32(raw[2] >> bit) & uint32(highs)) << uint32(field_bits)
        if high_bits == 2:
            bit = uint32(uint32(4 * w) + (group >> uint32(2)) * uint32(2))
            found |= (uint32(raw[2] >> bit) & uint32(highs)) << uint32(field_bits)
        return uint32(found)

    return quants


@cuda.jit(device=True, forceinline=True)
def _convert_mxfp4(raw: Any, scale: Any, minimum: Any, col: Any, weights: Any) -> None:
    e2m1.eight_floats(raw[0], raw[1], (uint32(col) >> uint32(3)) & uint32(1), weights)
    for k in range(8):
        weights[k] = e2m1.scaled(weights[k], scale)


@cache
def convert(type: GGMLType) -> Any:
    """The device function that makes eight floats of it."""
    if type in DENSE:
        return _convert_f32 if type == GGMLType.F32 else _convert_f16
    if type == GGMLType.MXFP4:
        return _convert_mxfp4
    has_minimum, four_quants = SCALES[type].has_minimum, _four_quants(type)
    zero = 2.0**23 + BIAS.get(type, 0)

    @cuda.jit(device=True, forceinline=True)
    def convert_quants(raw: Any, scale: Any, minimum: Any, col: Any, weights: Any) -> None:
        for w in range(2):
            quants = four_quants(raw, (uint32(col) >> uint32(2)) & uint32(7), w)
            for k in range(4):
                bits = permute_bytes(quants, uint32(_EXPONENT), uint32(_LAST_BYTE + k))
                quant = uint_as_float(bits) - float32(zero)
                weight = scale * quant
                weights[4 * w + k] = weight + minimum if has_minimum else weight

    return convert_quants
