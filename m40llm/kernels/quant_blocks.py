"""One weight of a GGML block, from the file's own bytes, on the device.

    w = weight(memory, o, i)    memory uint8[...], o the block's first byte (64-bit), i the weight

A warp whose lane i asks for weight i of a run of 32 decodes the run; its scale comes from the
L1. Layouts are those of ggml-common.h, values those of gguf.quants, bit for bit: every product
of a scale and a quant (11 + 6 + 5 bits at most) is exact in FP32, so that a fused multiply-add
rounds as the multiplication and addition of that package do, once. Q6_K's 11 + 8 + 6 bits are
rounded, but nothing is added to them.

Loads are single bytes: blocks of 17 to 210 bytes have no alignment. For rows gathered one by
one; what is read whole is repacked first (gguf.blocks).
"""

from functools import cache
from typing import Any, Final

from gguf import GGMLQuantizationType as GGMLType
from numba import cuda, float32, int32, uint32

from m40llm.kernels import e2m1
from m40llm.kernels.bits import half2_to_float2, uint_as_float
from m40llm.kernels.scales import BIAS, power_of_two
from m40llm.kernels.tables import look_up


@cuda.jit(device=True)
def _uint16(memory: Any, o: Any) -> Any:
    return uint32(memory[o]) | uint32(memory[o + 1]) << uint32(8)


@cuda.jit(device=True)
def _uint32(memory: Any, o: Any) -> Any:
    return _uint16(memory, o) | _uint16(memory, o + 2) << uint32(16)


@cuda.jit(device=True)
def _half(memory: Any, o: Any) -> Any:
    low, _ = half2_to_float2(_uint16(memory, o))
    return low


@cuda.jit(device=True)
def _signed(byte: Any) -> Any:
    return (int32(byte) ^ int32(128)) - int32(128)


@cuda.jit(device=True)
def _f32(memory: Any, o: Any, i: Any) -> Any:
    return uint_as_float(_uint32(memory, o))


@cuda.jit(device=True)
def _f16(memory: Any, o: Any, i: Any) -> Any:
    return _half(memory, o)


@cuda.jit(device=True)
def _bf16(memory: Any, o: Any, i: Any) -> Any:
    return uint_as_float(_uint16(memory, o) << uint32(16))


@cuda.jit(device=True)
def _nibble(memory: Any, o: Any, i: Any) -> Any:
    """Of 16 bytes at o: low nibbles are weights 0 to 15, high ones 16 to 31."""
    return (int32(memory[o + (i & 15)]) >> (4 * (int32(i) >> 4))) & int32(15)


@cuda.jit(device=True)
def _fifth_bit(memory: Any, o: Any, i: Any) -> Any:
    """Bit i of the 32 at o, as 16 or 0."""
    return ((int32(memory[o + (i >> 3)]) >> (int32(i) & 7)) & int32(1)) << 4


@cuda.jit(device=True)
def _q4_0(memory: Any, o: Any, i: Any) -> Any:
    return _half(memory, o) * float32(int32(_nibble(memory, o + 2, i) - 8))


@cuda.jit(device=True)
def _q4_1(memory: Any, o: Any, i: Any) -> Any:
    quant = float32(int32(_nibble(memory, o + 4, i)))
    return _half(memory, o) * quant + _half(memory, o + 2)


@cuda.jit(device=True)
def _q5_0(memory: Any, o: Any, i: Any) -> Any:
    quant = _nibble(memory, o + 6, i) | _fifth_bit(memory, o + 2, i)
    return _half(memory, o) * float32(int32(quant - 16))


@cuda.jit(device=True)
def _q5_1(memory: Any, o: Any, i: Any) -> Any:
    quant = _nibble(memory, o + 8, i) | _fifth_bit(memory, o + 4, i)
    return _half(memory, o) * float32(int32(quant)) + _half(memory, o + 2)


@cuda.jit(device=True)
def _q8_0(memory: Any, o: Any, i: Any) -> Any:
    return _half(memory, o) * float32(int32(_signed(memory[o + 2 + i])))


@cuda.jit(device=True)
def _scale_and_min(memory: Any, o: Any, s: Any) -> Any:
    """6-bit scale and minimum of run s of 32 weights, from the 12 bytes at o (Q4_K, Q5_K)."""
    low, middle = int32(memory[o + (s & 3)]), int32(memory[o + 4 + (s & 3)])
    if s < 4:
        return low & int32(63), middle & int32(63)
    high = int32(memory[o + 8 + (s & 3)])
    scale = (high & int32(15)) | ((low >> int32(2)) & int32(48))
    return scale, (high >> int32(4)) | ((middle >> int32(2)) & int32(48))


@cuda.jit(device=True)
def _scaled_k(memory: Any, o: Any, s: Any, quant: Any) -> Any:
    """d * scale * quant - dmin * minimum: exact products, one rounding."""
    scale, minimum = _scale_and_min(memory, o + 4, s)
    scaled = _half(memory, o) * float32(int32(scale)) * float32(int32(quant))
    return scaled - _half(memory, o + 2) * float32(int32(minimum))


@cuda.jit(device=True)
def _nibble_k(memory: Any, o: Any, i: Any) -> Any:
    """Of 32 bytes for each 64 weights: low nibbles are the first 32, high ones the others."""
    byte = int32(memory[o + 32 * (i >> 6) + (i & 31)])
    return (byte >> (4 * ((int32(i) >> 5) & 1))) & int32(15)


@cuda.jit(device=True)
def _q4_k(memory: Any, o: Any, i: Any) -> Any:
    return _scaled_k(memory, o, i >> 5, _nibble_k(memory, o + 16, i))


@cuda.jit(device=True)
def _q5_k(memory: Any, o: Any, i: Any) -> Any:
    fifth = (int32(memory[o + 16 + (i & 31)]) >> (int32(i) >> 5)) & int32(1)
    return _scaled_k(memory, o, i >> 5, _nibble_k(memory, o + 48, i) | (fifth << 4))


@cuda.jit(device=True)
def _q6_k(memory: Any, o: Any, i: Any) -> Any:
    s = int32(i) >> 5  # which 32 of the 256
    low = int32(memory[o + 64 * (s >> 2) + 32 * (s & 1) + (i & 31)])
    high = int32(memory[o + 128 + 32 * (s >> 2) + (i & 31)])
    low = (low >> (4 * ((s >> 1) & 1))) & int32(15)
    high = (high >> (2 * (s & 3))) & int32(3)
    quant = float32(int32((low | (high << 4)) - 32))
    scale = float32(int32(_signed(memory[o + 192 + (i >> 4)])))
    return _half(memory, o + 208) * scale * quant


@cuda.jit(device=True)
def _crumb(memory: Any, o: Any, i: Any) -> Any:
    """Of 32 bytes for each 128 weights: their two lowest bits are the first 32, and so on."""
    byte = int32(memory[o + 32 * (i >> 7) + (i & 31)])
    return (byte >> (2 * ((int32(i) >> 5) & 3))) & int32(3)


@cuda.jit(device=True)
def _q2_k(memory: Any, o: Any, i: Any) -> Any:
    both = int32(memory[o + (i >> 4)])
    scaled = _half(memory, o + 80) * float32(int32(both & 15))
    scaled *= float32(int32(_crumb(memory, o + 16, i)))
    return scaled - _half(memory, o + 82) * float32(int32(both >> 4))


@cuda.jit(device=True)
def _q3_k(memory: Any, o: Any, i: Any) -> Any:
    run = int32(i) >> 4
    low = (int32(memory[o + 96 + (run & 7)]) >> (4 * (run >> 3))) & int32(15)
    high = (int32(memory[o + 104 + (run & 3)]) >> (2 * (run >> 2))) & int32(3)
    scale = float32(int32((low | (high << 4)) - 32))
    third = (int32(memory[o + (i & 31)]) >> (int32(i) >> 5)) & int32(1)
    quant = float32(int32((_crumb(memory, o + 32, i) | (third << 2)) - 4))
    return _half(memory, o + 108) * scale * quant


@cache
def _value_of(type: GGMLType) -> Any:
    """value(number): from the type's table."""
    look_up_four, bias = look_up(type), BIAS[type]

    @cuda.jit(device=True)
    def value(number: Any) -> Any:
        selector = uint32(number >> int32(1)) | uint32(uint32(number & int32(1)) << uint32(3))
        byte = look_up_four(selector) & uint32(255)
        return float32(int32(int32(byte) - int32(bias)))

    return value


_value_of_iq4 = _value_of(GGMLType.IQ4_NL)


@cuda.jit(device=True)
def _iq4_nl(memory: Any, o: Any, i: Any) -> Any:
    return _half(memory, o) * _value_of_iq4(_nibble(memory, o + 2, i))


@cuda.jit(device=True)
def _iq4_xs(memory: Any, o: Any, i: Any) -> Any:
    s = int32(i) >> 5
    low = (int32(memory[o + 4 + (s >> 1)]) >> (4 * (s & 1))) & int32(15)
    high = int32(_uint16(memory, o + 2) >> uint32(2 * s)) & int32(3)
    scale = float32(int32((low | (high << 4)) - 32))
    return _half(memory, o) * scale * _value_of_iq4(_nibble(memory, o + 8 + 16 * s, i & 31))


@cuda.jit(device=True)
def _mxfp4(memory: Any, o: Any, i: Any) -> Any:
    return e2m1.scaled(
        e2m1.float_of(uint32(_nibble(memory, o + 1, i))), power_of_two(uint32(memory[o]))
    )


WEIGHT_OF: Final[dict[GGMLType, Any]] = {
    GGMLType.F32: _f32,
    GGMLType.F16: _f16,
    GGMLType.BF16: _bf16,
    GGMLType.Q4_0: _q4_0,
    GGMLType.Q4_1: _q4_1,
    GGMLType.Q5_0: _q5_0,
    GGMLType.Q5_1: _q5_1,
    GGMLType.Q8_0: _q8_0,
    GGMLType.Q2_K: _q2_k,
    GGMLType.Q3_K: _q3_k,
    GGMLType.Q4_K: _q4_k,
    GGMLType.Q5_K: _q5_k,
    GGMLType.Q6_K: _q6_k,
    GGMLType.IQ4_NL: _iq4_nl,
    GGMLType.IQ4_XS: _iq4_xs,
    GGMLType.MXFP4: _mxfp4,
}
