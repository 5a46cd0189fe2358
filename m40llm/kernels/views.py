"""Arrays over memory that a kernel did not get as an array; they cost no instruction.

    w = array_at(address, (n_rows, n_cols), uint32)     of global memory, from an int64
    sums = part_of(pool, first, n, int64)               of another array, from its element `first`

Both are in C order. `pool`, of shared memory, is 16-byte aligned; `first` must keep the alignment
of the new type.
"""

from typing import Any, Final

from numba import types
from numba.core import cgutils
from numba.cuda.extending import intrinsic

from m40llm.kernels.intrinsics import GLOBAL

UNSEEN: Final = 1 << 60  # elements that a view may have; what is used lies within the buffer


def _array_value(context: Any, builder: Any, array_type: Any, data: Any, shape: Any) -> Any:
    """The struct of a C-ordered array."""
    value_type = context.get_data_type(array_type.dtype)
    itemsize = context.get_constant(types.intp, context.get_abi_sizeof(value_type))
    strides: list[Any] = []
    stride = itemsize
    for n in reversed(shape):
        strides.insert(0, stride)
        stride = builder.mul(stride, n)
    array = context.make_array(array_type)(context, builder)
    data = builder.bitcast(data, array.data.type)
    context.populate_array(
        array, data=data, shape=shape, strides=strides, itemsize=itemsize, meminfo=None
    )
    return array._getvalue()


@intrinsic
def array_at(typing_context: Any, address: Any, shape: Any, kind: Any) -> Any:
    """The array of this shape, a tuple, and type whose first element has this address."""
    dtype = kind.instance_type if isinstance(kind, types.NumberClass) else kind.dtype
    array_type = types.Array(dtype, len(shape), "C")

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        sizes = cgutils.unpack_tuple(builder, args[1])
        kinds = signature.args[1].types
        shape = [
            context.cast(builder, size, given, types.intp)
            for size, given in zip(sizes, kinds, strict=True)
        ]
        element = context.get_data_type(dtype)
        pointer = builder.inttoptr(args[0], element.as_pointer(GLOBAL))
        generic = builder.addrspacecast(pointer, element.as_pointer())
        return _array_value(context, builder, array_type, generic, shape)

    return array_type(types.int64, shape, kind), generate


@intrinsic
def part_of(typing_context: Any, array: Any, first: Any, n: Any, kind: Any) -> Any:
    """n elements of type `kind` over the memory of `array`, from its element `first` on."""
    dtype = kind.instance_type if isinstance(kind, types.NumberClass) else kind.dtype
    array_type = types.Array(dtype, 1, "C")

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        element = builder.gep(data, [args[1]])
        return _array_value(context, builder, array_type, element, [args[2]])

    return array_type(array, types.int64, types.int64, kind), generate


@intrinsic
def never_inlined(typing_context: Any) -> Any:
    """Called in a device function: it stays one, with registers of its own.

    Inlined into a large kernel, a function's registers spill for values that others keep.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.function.attributes.discard("alwaysinline")
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.void(), generate
