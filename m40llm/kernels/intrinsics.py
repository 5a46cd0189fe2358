"""What Numba CUDA lacks of memory: wide, streaming and volatile loads and stores.

Each is one LLVM instruction or two, so that the emulator runs it as it stands. An index counts
elements from the array's first, whatever its shape (C order); the address must be a multiple of
the bytes moved.

    a, b, c, d = load_uint4_readonly(weights, i)      ld.global.nc.v4.u32
    x, y, z, w = load_float4(x, i)                    ld.global.v4.f32
    store_float4(y, i, a, b, c, d)                    st.global.v4.f32
    ... the same for uint2, float2, and with _shared for shared arrays; load_uint_readonly
        and load_ushort_readonly
    store_float_shared(bytes, i, x)                   st.shared.f32
    bytes = as_bytes(array)                           the same memory, so that an index counts bytes
    v = load_volatile(flags, i)                       ld.volatile.global: polling
    v = load_volatile_shared(shared, i)               ld.volatile.shared
    store_volatile(flags, i, v)                       st.volatile.global
    a, b, c, d = load_uint4_streaming(weights, i)     ld.global.cs.nc.v4.u32, and one for uint2
    ... and load_uint4_volatile, load_uint2_volatile, store_uint4_volatile, store_uint2_volatile: of
        which each aligned 8 bytes come and go as a whole

A `_readonly` load goes through the read-only cache: nothing may write to the array during the
launch. LLVM neither hoists nor merges a volatile load: a spin on one sees the change.
"""

from typing import Any, Final

from llvmlite import ir
from numba import types
from numba.cuda.extending import intrinsic

GLOBAL: Final = 1  # NVPTX address spaces
SHARED: Final = 3
_INT32: Final = ir.IntType(32)


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
    n_bytes = width * element.bitwidth // 8

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
                vector.align = n_bytes
                builder._insert(vector)
            else:
                vector = builder.load(pointer, align=n_bytes)
            if readonly:
                vector.set_metadata("invariant.load", builder.module.add_metadata([]))
            lanes = [builder.extract_element(vector, _INT32(i)) for i in range(width)]
            if width == 1:
                return lanes[0]
            return context.make_tuple(builder, signature.return_type, lanes)

        loaded = element if width == 1 else types.UniTuple(element, width)
        return loaded(array, types.int64), generate

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
load_uint_readonly = _vector_load(types.uint32, 1, GLOBAL, readonly=True)
load_ushort_readonly = _vector_load(types.uint16, 1, GLOBAL, readonly=True)
load_float4_readonly = _vector_load(types.float32, 4, GLOBAL, readonly=True)
load_float2_readonly = _vector_load(types.float32, 2, GLOBAL, readonly=True)
load_uint4_shared = _vector_load(types.uint32, 4, SHARED)
load_uint2_shared = _vector_load(types.uint32, 2, SHARED)
load_float4_shared = _vector_load(types.float32, 4, SHARED)
load_float2_shared = _vector_load(types.float32, 2, SHARED)
load_uint4_volatile = _vector_load(types.uint32, 4, GLOBAL, volatile=True)
load_uint2_volatile = _vector_load(types.uint32, 2, GLOBAL, volatile=True)
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


def _streaming_load(width: int) -> Any:
    """An intrinsic as the readonly load of so many uint32, of what is read once: it leaves the L2
    first, and so what is read again stays there: activations, norms, keys, and the code itself."""
    results = ",".join(f"${i}" for i in range(width))
    assembly = f"ld.global.cs.nc.v{width}.u32 {{{results}}}, [${width}];"

    @intrinsic
    def load(typing_context: Any, array: Any, index: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            pointer = _element_pointer(context, builder, signature.args[0], args, _INT32, GLOBAL)
            kind = ir.FunctionType(ir.LiteralStructType([_INT32] * width), [ir.IntType(64)])
            address = builder.ptrtoint(pointer, ir.IntType(64))
            found = builder.asm(kind, assembly, "=r," * width + "l", [address], False)
            lanes = [builder.extract_value(found, i) for i in range(width)]
            return context.make_tuple(builder, signature.return_type, lanes)

        return types.UniTuple(types.uint32, width)(array, types.int64), generate

    return load


load_uint4_streaming = _streaming_load(4)
load_uint2_streaming = _streaming_load(2)


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
