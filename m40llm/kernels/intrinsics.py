"""What Numba CUDA lacks: wide loads and stores, half2, bit casts, volatile access.

Each is one LLVM instruction or two, so that the emulator runs it as it stands. An index counts
elements from the array's first, whatever its shape (C order); the address must be a multiple of
the bytes moved.

    a, b, c, d = load_uint4_readonly(weights, i)      ld.global.nc.v4.u32
    x, y, z, w = load_float4(x, i)                    ld.global.v4.f32
    store_float4(y, i, a, b, c, d)                    st.global.v4.f32
    ... the same for uint2, float2, and with _shared for shared arrays
    store_float_shared(bytes, i, x)                   st.shared.f32
    bytes = as_bytes(array)                           the same memory, so that an index counts bytes
    low, high = half2_to_float2(a)                    cvt.f32.f16, twice
    a = float2_to_half2(low, high)                    cvt.rn.f16.f32, twice; low goes to bits 0..15
    u = float_as_uint(f); f = uint_as_float(u)        mov.b32
    v = load_volatile(flags, i)                       ld.volatile.global: polling
    v = load_volatile_shared(shared, i)               ld.volatile.shared
    store_volatile(flags, i, v)                       st.volatile.global
    a, b, c, d = load_uint4_streaming(weights, i)     ld.global.cs.nc.v4.u32
    ... and load_uint4_volatile, store_uint4_volatile, store_uint2_volatile: of which each aligned
        8 bytes come and go as a whole

A `_readonly` load goes through the read-only cache: nothing may write to the array during the
launch. LLVM neither hoists nor merges a volatile load: a spin on one sees the change.
"""

from typing import Any, Final

from llvmlite import ir
from numba import types
from numba.cuda.extending import intrinsic

GLOBAL: Final = 1  # NVPTX address spaces
SHARED: Final = 3
_HALF2: Final = ir.VectorType(ir.HalfType(), 2)
_INT32: Final = ir.IntType(32)
_STREAM: Final = "ld.global.cs.nc.v4.u32 {$0,$1,$2,$3}, [$4];"


def _element_pointer(
    context: Any, builder: Any, array_type: Any, args: Any, as_type: Any, space: int
) -> Any:
    """A pointer of the address space to element `index` of an array: args begin with the two."""
    array, index = args[:2]
    data = context.make_array(array_type)(context, builder, array).data
    element = builder.gep(data, [index])
    generic = builder.bitcast(element, as_type.as_pointer())
    return builder.addrspacecast(generic, as_type.as_pointer(space))


class _VolatileLoad(ir.LoadInstr):  # type: ignore[misc]
    # llvmlite's builder knows no volatile accesses
    align: int | None = None

    def descr(self, buf: list[str]) -> None:
        super().descr(buf)
        buf[-1] = buf[-1].replace("load ", "load volatile ", 1)


class _VolatileStore(ir.StoreInstr):  # type: ignore[misc]
    align: int | None = None

    def descr(self, buf: list[str]) -> None:
        super().descr(buf)
        buf[-1] = buf[-1].replace("store ", "store volatile ", 1)


def _vector_load(
    element: types.Type, width: int, space: int, *, readonly: bool = False, volatile: bool = False
) -> Any:
    """An intrinsic `(array, index) -> width elements`: one load instruction."""

    @intrinsic
    def load(typing_context: Any, array: Any, index: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            lane_type = context.get_value_type(element)
            vector_type = ir.VectorType(lane_type, width)
            pointer = _element_pointer(
                context, builder, signature.args[0], args, vector_type, space
            )
            if volatile:
                vector = _VolatileLoad(builder.block, pointer)
                vector.align = 4 * width
                builder._insert(vector)
            else:
                vector = builder.load(pointer, align=4 * width)
            if readonly:
                vector.set_metadata("invariant.load", builder.module.add_metadata([]))
            lanes = [builder.extract_element(vector, _INT32(i)) for i in range(width)]
            return context.make_tuple(builder, signature.return_type, lanes)

        return types.UniTuple(element, width)(array, types.int64), generate

    return load


def _store_lanes(
    context: Any, builder: Any, signature: Any, args: Any, space: int, *, volatile: bool = False
) -> Any:
    """Code of a vector store: (array, index, *lanes)."""
    lanes = args[2:]
    vector_type = ir.VectorType(lanes[0].type, len(lanes))
    vector = ir.Constant(vector_type, ir.Undefined)
    for i, lane in enumerate(lanes):
        vector = builder.insert_element(vector, lane, _INT32(i))
    pointer = _element_pointer(context, builder, signature.args[0], args, vector_type, space)
    if volatile:
        builder._insert(_VolatileStore(builder.block, vector, pointer))
        builder.block.instructions[-1].align = 4 * len(lanes)
    else:
        builder.store(vector, pointer, align=4 * len(lanes))
    return context.get_dummy_value()


def _store4(element: types.Type, space: int, *, volatile: bool = False) -> Any:
    """An intrinsic `(array, index, a, b, c, d)`: one 16-byte store."""

    @intrinsic
    def store(typing_context: Any, array: Any, index: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return _store_lanes(context, builder, signature, args, space, volatile=volatile)

        return types.void(array, types.int64, *[element] * 4), generate

    return store


def _store2(element: types.Type, space: int, *, volatile: bool = False) -> Any:
    """An intrinsic `(array, index, a, b)`: one 8-byte store."""

    @intrinsic
    def store(typing_context: Any, array: Any, index: Any, a: Any, b: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return _store_lanes(context, builder, signature, args, space, volatile=volatile)

        return types.void(array, types.int64, element, element), generate

    return store


load_uint4 = _vector_load(types.uint32, 4, GLOBAL)
load_uint2 = _vector_load(types.uint32, 2, GLOBAL)
load_float4 = _vector_load(types.float32, 4, GLOBAL)
load_float2 = _vector_load(types.float32, 2, GLOBAL)
load_uint4_readonly = _vector_load(types.uint32, 4, GLOBAL, readonly=True)
load_uint2_readonly = _vector_load(types.uint32, 2, GLOBAL, readonly=True)
load_float4_readonly = _vector_load(types.float32, 4, GLOBAL, readonly=True)
load_float2_readonly = _vector_load(types.float32, 2, GLOBAL, readonly=True)
load_uint4_shared = _vector_load(types.uint32, 4, SHARED)
load_uint2_shared = _vector_load(types.uint32, 2, SHARED)
load_float4_shared = _vector_load(types.float32, 4, SHARED)
load_float2_shared = _vector_load(types.float32, 2, SHARED)
load_uint4_volatile = _vector_load(types.uint32, 4, GLOBAL, volatile=True)
store_uint4 = _store4(types.uint32, GLOBAL)
store_uint2 = _store2(types.uint32, GLOBAL)
store_float4 = _store4(types.float32, GLOBAL)
store_float2 = _store2(types.float32, GLOBAL)
store_uint4_volatile = _store4(types.uint32, GLOBAL, volatile=True)
store_uint2_volatile = _store2(types.uint32, GLOBAL, volatile=True)
store_uint4_shared = _store4(types.uint32, SHARED)
store_uint2_shared = _store2(types.uint32, SHARED)
store_float4_shared = _store4(types.float32, SHARED)
store_float2_shared = _store2(types.float32, SHARED)


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


def _volatile_load(space: int) -> Any:
    """An intrinsic `(array, index) -> the element, as it is now`."""

    @intrinsic
    def load(typing_context: Any, array: Any, index: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kind = context.get_data_type(signature.return_type)
            pointer = _element_pointer(context, builder, signature.args[0], args, kind, space)
            value = _VolatileLoad(builder.block, pointer)
            builder._insert(value)
            return value

        return array.dtype(array, types.int64), generate

    return load


load_volatile = _volatile_load(GLOBAL)
load_volatile_shared = _volatile_load(SHARED)


@intrinsic
def load_uint4_streaming(typing_context: Any, array: Any, index: Any) -> Any:
    """As load_uint4_readonly, of what is read once: it leaves the L2 first, and so what is read
    again stays there: activations, norms, keys, and the code itself."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(32)
        pointer = _element_pointer(context, builder, signature.args[0], args, word, GLOBAL)
        kind = ir.FunctionType(ir.LiteralStructType([word] * 4), [ir.IntType(64)])
        address = builder.ptrtoint(pointer, ir.IntType(64))
        found = builder.asm(kind, _STREAM, "=r,=r,=r,=r,l", [address], False)
        lanes = [builder.extract_value(found, i) for i in range(4)]
        return context.make_tuple(builder, signature.return_type, lanes)

    return types.UniTuple(types.uint32, 4)(array, types.int64), generate


@intrinsic
def store_volatile(typing_context: Any, array: Any, index: Any, value: Any) -> Any:
    """Write an element of a global array at once: for who polls it."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _element_pointer(context, builder, signature.args[0], args, args[2].type, GLOBAL)
        builder._insert(_VolatileStore(builder.block, args[2], pointer))
        return context.get_dummy_value()

    return types.void(array, types.int64, array.dtype), generate


@intrinsic
def as_bytes(typing_context: Any, array: Any) -> Any:
    """An array's memory as one of uint8, for the intrinsics of this file alone: an index that
    counts bytes is an address, where one that counts floats must be shifted first."""
    kind = types.Array(types.uint8, 1, "C")

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        view = context.make_array(kind)(context, builder)
        view.data = builder.bitcast(data, view.data.type)
        return view._getvalue()

    return kind(array), generate


@intrinsic
def store_float_shared(typing_context: Any, array: Any, index: Any, value: Any) -> Any:
    """Write a float to a shared array of any type, at element `index` of that."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _element_pointer(context, builder, signature.args[0], args, args[2].type, SHARED)
        builder.store(args[2], pointer, align=4)
        return context.get_dummy_value()

    return types.void(array, types.int64, types.float32), generate
