"""What Numba CUDA lacks of bits in registers: half2, bit casts, bytes in another order.

    low, high = half2_to_float2(a)                    cvt.f32.f16, twice
    a = float2_to_half2(low, high)                    cvt.rn.f16.f32, twice; low goes to bits 0..15
    u = float_as_uint(f); f = uint_as_float(u)        mov.b32
    u = permute_bytes(a, b, selectors)                prmt.b32
    x = within_half(x)                                65,504 of its sign if beyond; NaN stays

Each is one instruction or two in LLVM, so that the emulator runs it as it stands.
"""

from typing import Any, Final

from llvmlite import ir
from numba import cuda, float32, types
from numba.core import cgutils
from numba.cuda.extending import intrinsic

_HALF2: Final = ir.VectorType(ir.HalfType(), 2)
_INT32: Final = ir.IntType(32)
LARGEST_HALF: Final = 65504.0


@cuda.jit(device=True, forceinline=True)
def within_half(x: Any) -> Any:
    """x, or the largest FP16 of its sign, which is nearer than infinity; NaN stays NaN."""
    if x > float32(LARGEST_HALF):
        return float32(LARGEST_HALF)
    if x < float32(-LARGEST_HALF):
        return float32(-LARGEST_HALF)
    return x


@intrinsic
def half2_to_float2(typing_context: Any, halves: Any) -> Any:
    """Two FP16 in a uint32, low half first, as two float32; exact."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector = builder.bitcast(args[0], _HALF2)
        floats = [
            builder.fpext(builder.extract_element(vector, _INT32(i)), ir.FloatType())
            for i in range(2)
        ]
        return context.make_tuple(builder, signature.return_type, floats)

    return types.UniTuple(types.float32, 2)(types.uint32), generate


@intrinsic
def float2_to_half2(typing_context: Any, low: Any, high: Any) -> Any:
    """Two float32 rounded to FP16 (to nearest, ties to even) and packed in a uint32."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector = ir.Constant(_HALF2, ir.Undefined)
        for i, value in enumerate(args):
            half = builder.fptrunc(value, ir.HalfType())
            vector = builder.insert_element(vector, half, _INT32(i))
        return builder.bitcast(vector, _INT32)

    return types.uint32(types.float32, types.float32), generate


@intrinsic
def float_as_uint(typing_context: Any, value: Any) -> Any:
    """The 32 bits of a float32."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], _INT32)

    return types.uint32(types.float32), generate


@intrinsic
def uint_as_float(typing_context: Any, bits: Any) -> Any:
    """The float32 of 32 bits."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.uint32), generate


@intrinsic
def permute_bytes(typing_context: Any, a: Any, b: Any, selectors: Any) -> Any:
    """Byte k is the one of a's four and b's four, in a row, that nibble k of selectors says, 0 to
    7; 8 more: its sign, eight times. The nibbles above the fourth are not looked at."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(_INT32, [_INT32] * 3)
        permute = cgutils.get_or_insert_function(builder.module, kind, "llvm.nvvm.prmt")
        return builder.call(permute, args)

    return types.uint32(types.uint32, types.uint32, types.uint32), generate
