"""Sixteen lanes at a time for Numba's CPU JIT: the vocabulary in which formats.py is written.

Numba leaves loops over packed bytes scalar, since it cannot prove that a byte array and a float
array do not overlap. These few intrinsics say the vector operation outright, as LLVM vectors, so
that one source becomes SSE, AVX2 or NEON code. Two value types, by role:

u8x16    sixteen bytes of a packed block
f32x16   sixteen weights or activations

`memory` is always a one-dimensional C-contiguous array, `i` an index into it (int64, unchecked).
"""

from typing import Any

from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

LANES = 16
_I8, _I16, _I32, _F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.FloatType()
_U8X16, _F32X16 = ir.VectorType(_I8, LANES), ir.VectorType(_F32, LANES)
_U16X8, _I16X16 = ir.VectorType(_I16, LANES // 2), ir.VectorType(_I16, LANES)
_I32X16, _F16X16 = ir.VectorType(_I32, LANES), ir.VectorType(ir.HalfType(), LANES)
HAS_F16C = bool(get_host_cpu_features().get("f16c"))


class _Vector(types.Type):  # type: ignore[misc]
    """A Numba value type that is one LLVM vector."""

    def __init__(self, name: str, llvm_type: ir.Type) -> None:
        super().__init__(name=name)
        self.llvm_type = llvm_type


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, fe_type: _Vector) -> None:
        super().__init__(manager, fe_type, fe_type.llvm_type)


u8x16 = _Vector("u8x16", _U8X16)
f32x16 = _Vector("f32x16", _F32X16)


def _splat(builder: ir.IRBuilder, scalar: ir.Value, vector: ir.VectorType) -> ir.Value:
    undefined = ir.Constant(vector, ir.Undefined)
    one = builder.insert_element(undefined, scalar, ir.Constant(_I32, 0))
    zeros = ir.Constant(ir.VectorType(_I32, vector.count), [0] * vector.count)
    return builder.shuffle_vector(one, undefined, zeros)


def _address(context: Any, builder: Any, memory_type: Any, memory: Any, i: Any, to: Any) -> Any:
    data = context.make_array(memory_type)(context, builder, memory).data
    return builder.bitcast(builder.gep(data, [i]), ir.PointerType(to))


def _elementwise(operation: str, vector: _Vector) -> Any:
    """An intrinsic that is one LLVM instruction on two whole vectors."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return getattr(builder, operation)(*args)

    return intrinsic(lambda typing, a, b: (vector(vector, vector), emit))


mul = _elementwise("fmul", f32x16)  # rounds once: dequantising must round as NumPy does
add = _elementwise("fadd", f32x16)
sub = _elementwise("fsub", f32x16)
either = _elementwise("or_", u8x16)


@intrinsic
def fmuladd(typing, a, b, c):
    """a * b + c, fused where the machine fuses: for sums, never for dequantising."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(_F32X16, [_F32X16] * 3)
        fma = cgutils.get_or_insert_function(builder.module, kind, "llvm.fmuladd.v16f32")
        return builder.call(fma, args)

    return f32x16(f32x16, f32x16, f32x16), emit


@intrinsic
def splat(typing, scalar):
    """float32 -> f32x16, the same value in every lane."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _splat(builder, args[0], _F32X16)

    return f32x16(types.float32), emit


@intrinsic
def lane_sum(typing, v):
    """The sum of the sixteen lanes, pairwise."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        total = args[0]
        for width in (8, 4, 2, 1):
            half = ir.VectorType(_I32, width)
            low = ir.Constant(half, list(range(width)))
            high = ir.Constant(half, list(range(width, 2 * width)))
            blank = ir.Constant(total.type, ir.Undefined)
            total = builder.fadd(
                builder.shuffle_vector(total, blank, low),
                builder.shuffle_vector(total, blank, high),
            )
        return builder.extract_element(total, ir.Constant(_I32, 0))

    return types.float32(f32x16), emit


@intrinsic
def load_f32(typing, memory, i):
    """memory[i : i + 16] of a float32 array."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = _address(context, builder, signature.args[0], args[0], args[1], _F32X16)
        return builder.load(address, align=4)

    return f32x16(memory, types.int64), emit


@intrinsic
def store_f32(typing, memory, i, v):
    """memory[i : i + 16] = v for a float32 array."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = _address(context, builder, signature.args[0], args[0], args[1], _F32X16)
        builder.store(args[2], address, align=4)
        return context.get_dummy_value()

    return types.void(memory, types.int64, f32x16), emit


@intrinsic
def load_bytes(typing, memory, i):
    """memory[i : i + 16] of a uint8 array."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = _address(context, builder, signature.args[0], args[0], args[1], _U8X16)
        return builder.load(address, align=1)

    return u8x16(memory, types.int64), emit


@intrinsic
def bits(typing, v, shift, mask):
    """(v >> shift) & mask in each byte; mask must fit in 8 - shift bits.

    Shifted as 16-bit lanes, which every machine has: what crosses a byte is masked away.
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        v, shift, mask = args
        wide = builder.bitcast(v, _U16X8)
        amount = _splat(builder, builder.trunc(shift, _I16), _U16X8)
        shifted = builder.bitcast(builder.lshr(wide, amount), _U8X16)
        return builder.and_(shifted, _splat(builder, builder.trunc(mask, _I8), _U8X16))

    return u8x16(u8x16, types.int64, types.int64), emit


@intrinsic
def shift_left(typing, v, shift):
    """v << shift in each byte; the bits shifted out must be zero."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        wide = builder.bitcast(args[0], _U16X8)
        amount = _splat(builder, builder.trunc(args[1], _I16), _U16X8)
        return builder.bitcast(builder.shl(wide, amount), _U8X16)

    return u8x16(u8x16, types.int64), emit


@intrinsic
def load_bit_per_lane(typing, memory, i):
    """Lane j is bit j (0 or 1) of the little-endian 16-bit word at memory[i : i + 2]."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = _address(context, builder, signature.args[0], args[0], args[1], _I16)
        word = _splat(builder, builder.load(address, align=1), _I16X16)
        lane_bit = ir.Constant(_I16X16, [1 << lane for lane in range(LANES)])
        is_set = builder.icmp_unsigned("==", builder.and_(word, lane_bit), lane_bit)
        return builder.zext(is_set, _U8X16)

    return u8x16(memory, types.int64), emit


@intrinsic
def unsigned_to_f32(typing, v):
    """Bytes 0..255 -> f32x16."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.uitofp(args[0], _F32X16)

    return f32x16(u8x16), emit


@intrinsic
def signed_to_f32(typing, v):
    """Bytes as -128..127 -> f32x16."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.sitofp(args[0], _F32X16)

    return f32x16(u8x16), emit


def _half_by_integers(builder: Any, half: Any, i_type: Any, f_type: Any) -> Any:
    """IEEE half bits (zero-extended to 32) -> float, by shifts and one product.

    Shifted into place, a half's exponent is 112 too small; the product with 2^112 mends that and
    normalises subnormals, exactly. Infinities and NaNs get the full exponent instead.
    """
    n_lanes = getattr(i_type, "count", 0)

    def const(kind: Any, value: float) -> ir.Constant:
        return ir.Constant(kind, [value] * n_lanes if n_lanes else value)

    magnitude = builder.shl(builder.and_(half, const(i_type, 0x7FFF)), const(i_type, 13))
    product = builder.fmul(builder.bitcast(magnitude, f_type), const(f_type, 2.0**112))
    is_finite = builder.icmp_unsigned("<", magnitude, const(i_type, 0x0F800000))
    full_exponent = builder.or_(magnitude, const(i_type, 0x7F800000))
    value = builder.select(is_finite, builder.bitcast(product, i_type), full_exponent)
    sign = builder.shl(builder.and_(half, const(i_type, 0x8000)), const(i_type, 16))
    return builder.bitcast(builder.or_(value, sign), f_type)


def _load_half(builder: Any, address: Any, i_type: Any, f_type: Any, h_type: Any) -> Any:
    """FP16 at an address (of 16-bit words) -> FP32; one instruction where the CPU has F16C.

    Without it LLVM would call a compiler-rt function that nobody links, hence the integers.
    """
    if HAS_F16C:
        half = builder.load(builder.bitcast(address, ir.PointerType(h_type)), align=1)
        return builder.fpext(half, f_type)
    return _half_by_integers(
        builder, builder.zext(builder.load(address, align=1), i_type), i_type, f_type
    )


@intrinsic
def half_at(typing, memory, i):
    """The little-endian FP16 at memory[i : i + 2] of a uint8 array, as float32."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = _address(context, builder, signature.args[0], args[0], args[1], _I16)
        return _load_half(builder, address, _I32, _F32, ir.HalfType())

    return types.float32(memory, types.int64), emit


@intrinsic
def load_half(typing, memory, i):
    """Sixteen little-endian FP16 at memory[i : i + 32] of a uint8 array."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = _address(context, builder, signature.args[0], args[0], args[1], _I16X16)
        return _load_half(builder, address, _I32X16, _F32X16, _F16X16)

    return f32x16(memory, types.int64), emit


@intrinsic
def load_bfloat16(typing, memory, i):
    """Sixteen little-endian BF16 at memory[i : i + 32]: the upper halves of FP32 words."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = _address(context, builder, signature.args[0], args[0], args[1], _I16X16)
        words = builder.zext(builder.load(address, align=1), _I32X16)
        upper = builder.shl(words, ir.Constant(_I32X16, [16] * LANES))
        return builder.bitcast(upper, _F32X16)

    return f32x16(memory, types.int64), emit


@intrinsic
def load_float(typing, memory, i):
    """Sixteen little-endian FP32 at memory[i : i + 64] of a uint8 array, aligned or not."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = _address(context, builder, signature.args[0], args[0], args[1], _F32X16)
        return builder.load(address, align=1)

    return f32x16(memory, types.int64), emit
