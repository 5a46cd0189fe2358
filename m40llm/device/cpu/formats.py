"""Every packed format that the CPU computes with as it lies in the file, one decoder each.

A decoder turns 32 consecutive weights of a block into two vectors of 16, bit for bit as
`gguf.quants.dequantize` defines them (a test says so): each product and sum rounds once, in the
order that package uses. The same decoder serves the matrix-vector product, where the weights never
leave registers, and `unpack`, which feeds the matrix product.

decode(memory, o, s): memory uint8[...], o the block's first byte, s which 32 of the block.
Layouts: ggml-common.h and ggml-quants.c of ggml; gguf/quants.py.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from gguf import GGMLQuantizationType as GGMLType
from numba import njit

from m40llm.device.cpu.simd import (
    add,
    bits,
    either,
    half_at,
    load_bfloat16,
    load_bit_per_lane,
    load_bytes,
    load_float,
    load_half,
    mul,
    shift_left,
    signed_to_f32,
    splat,
    sub,
    unsigned_to_f32,
)

UNIT = 32  # weights that a decoder yields at once

inline = njit(inline="never", boundscheck=False, error_model="numpy")


@inline
def _decode_f32(memory, o, s):
    return load_float(memory, o), load_float(memory, o + 64)


@inline
def _decode_f16(memory, o, s):
    return load_half(memory, o), load_half(memory, o + 32)


@inline
def _decode_bf16(memory, o, s):
    return load_bfloat16(memory, o), load_bfloat16(memory, o + 32)


@inline
def _decode_q4_0(memory, o, s):
    d, q, eight = splat(half_at(memory, o)), load_bytes(memory, o + 2), splat(8.0)
    low = mul(d, sub(unsigned_to_f32(bits(q, 0, 15)), eight))
    return low, mul(d, sub(unsigned_to_f32(bits(q, 4, 15)), eight))


@inline
def _decode_q4_1(memory, o, s):
    d, m, q = splat(half_at(memory, o)), splat(half_at(memory, o + 2)), load_bytes(memory, o + 4)
    low = add(mul(d, unsigned_to_f32(bits(q, 0, 15))), m)
    return low, add(mul(d, unsigned_to_f32(bits(q, 4, 15))), m)


@inline
def _five_bits(memory, high_bits, o, shift):
    """Sixteen 5-bit numbers: nibbles of memory[o:] and one bit each of the word at high_bits."""
    fifth = shift_left(load_bit_per_lane(memory, high_bits), 4)
    return unsigned_to_f32(either(bits(load_bytes(memory, o), shift, 15), fifth))


@inline
def _decode_q5_0(memory, o, s):
    d, sixteen = splat(half_at(memory, o)), splat(16.0)
    low = mul(d, sub(_five_bits(memory, o + 2, o + 6, 0), sixteen))
    return low, mul(d, sub(_five_bits(memory, o + 4, o + 6, 4), sixteen))


@inline
def _decode_q5_1(memory, o, s):
    d, m = splat(half_at(memory, o)), splat(half_at(memory, o + 2))
    low = add(mul(d, _five_bits(memory, o + 4, o + 8, 0)), m)
    return low, add(mul(d, _five_bits(memory, o + 6, o + 8, 4)), m)


@inline
def _decode_q8_0(memory, o, s):
    d = splat(half_at(memory, o))
    low = mul(signed_to_f32(load_bytes(memory, o + 2)), d)
    return low, mul(signed_to_f32(load_bytes(memory, o + 18)), d)


@inline
def _scale_and_min(memory, o, s):
    """Sub-block s's 6-bit scale and minimum from the 12 bytes at o (Q4_K, Q5_K)."""
    low, middle = memory[o + (s & 3)], memory[o + 4 + (s & 3)]
    if s < 4:
        return low & 63, middle & 63
    high = memory[o + 8 + (s & 3)]
    return (high & 15) | ((low >> 2) & 48), (high >> 4) | ((middle >> 2) & 48)


@inline
def _k_scales(memory, o, s):
    """d * scale and dmin * min of sub-block s, each rounded to FP32 once."""
    scale, minimum = _scale_and_min(memory, o + 4, s)
    d = mul(splat(half_at(memory, o)), splat(scale))
    return d, mul(splat(half_at(memory, o + 2)), splat(minimum))


@inline
def _decode_q4_k(memory, o, s):
    d, m = _k_scales(memory, o, s)
    q, shift = o + 16 + 32 * (s >> 1), 4 * (s & 1)
    low = sub(mul(d, unsigned_to_f32(bits(load_bytes(memory, q), shift, 15))), m)
    return low, sub(mul(d, unsigned_to_f32(bits(load_bytes(memory, q + 16), shift, 15))), m)


@inline
def _five_bits_k(memory, o, q, s):
    fifth = shift_left(bits(load_bytes(memory, o), s, 1), 4)
    return unsigned_to_f32(either(bits(load_bytes(memory, q), 4 * (s & 1), 15), fifth))


@inline
def _decode_q5_k(memory, o, s):
    d, m = _k_scales(memory, o, s)
    q = o + 48 + 32 * (s >> 1)
    low = sub(mul(d, _five_bits_k(memory, o + 16, q, s)), m)
    return low, sub(mul(d, _five_bits_k(memory, o + 32, q + 16, s)), m)


@inline
def _six_bits(memory, ql, qh, s):
    upper = shift_left(bits(load_bytes(memory, qh), 2 * (s & 3), 3), 4)
    lower = bits(load_bytes(memory, ql), 4 * ((s >> 1) & 1), 15)
    return sub(unsigned_to_f32(either(lower, upper)), splat(32.0))


@inline
def _signed(byte):
    return (byte ^ 128) - 128  # uint8 -> int64


@inline
def _decode_q6_k(memory, o, s):
    ql, qh = o + 64 * (s >> 2) + 32 * (s & 1), o + 128 + 32 * (s >> 2)
    d, scales = splat(half_at(memory, o + 208)), o + 192 + 2 * s
    d_low = mul(d, splat(_signed(memory[scales])))
    d_high = mul(d, splat(_signed(memory[scales + 1])))
    low = mul(d_low, _six_bits(memory, ql, qh, s))
    return low, mul(d_high, _six_bits(memory, ql + 16, qh + 16, s))


class CpuFormat(NamedTuple):
    """How a type lies in memory: weights and bytes of a block, and its decoder."""

    n_weights: int
    n_bytes: int
    decode: Callable[..., Any]


# F32, F16 and BF16 have no blocks; a unit of 32 serves as one.
FORMATS: dict[GGMLType, CpuFormat] = {
    GGMLType.F32: CpuFormat(32, 128, _decode_f32),
    GGMLType.F16: CpuFormat(32, 64, _decode_f16),
    GGMLType.BF16: CpuFormat(32, 64, _decode_bf16),
    GGMLType.Q4_0: CpuFormat(32, 18, _decode_q4_0),
    GGMLType.Q4_1: CpuFormat(32, 20, _decode_q4_1),
    GGMLType.Q5_0: CpuFormat(32, 22, _decode_q5_0),
    GGMLType.Q5_1: CpuFormat(32, 24, _decode_q5_1),
    GGMLType.Q8_0: CpuFormat(32, 34, _decode_q8_0),
    GGMLType.Q4_K: CpuFormat(256, 144, _decode_q4_k),
    GGMLType.Q5_K: CpuFormat(256, 176, _decode_q5_k),
    GGMLType.Q6_K: CpuFormat(256, 210, _decode_q6_k),
}
