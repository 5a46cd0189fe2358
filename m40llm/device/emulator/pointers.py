"""Numba intrinsics for addresses: resume a coroutine, see a record or bytes at an address."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.numpy_support import from_dtype

from m40llm.device.emulator.records import BLOCK, REGION, THREAD

_BYTE_POINTER = ir.PointerType(ir.IntType(8))


@intrinsic  # type: ignore[untyped-decorator]
def resume(typing_context: Any, frame: Any) -> Any:
    """Go on with the coroutine whose frame is at this address; a frame begins with the code's."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        function_type = ir.FunctionType(ir.VoidType(), [_BYTE_POINTER])
        slot = builder.inttoptr(args[0], function_type.as_pointer().as_pointer())
        builder.call(builder.load(slot), [builder.inttoptr(args[0], _BYTE_POINTER)])
        return context.get_dummy_value()

    return types.void(types.uint64), generate


@intrinsic  # type: ignore[untyped-decorator]
def start(typing_context: Any, code: Any, thread: Any) -> Any:
    """Begin a coroutine: call its first part for the THREAD record at this address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        function_type = ir.FunctionType(_BYTE_POINTER, [_BYTE_POINTER])
        function = builder.inttoptr(args[0], function_type.as_pointer())
        builder.call(function, [builder.inttoptr(args[1], _BYTE_POINTER)])
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64), generate


@intrinsic  # type: ignore[untyped-decorator]
def fill_bytes(typing_context: Any, address: Any, value: Any, n_bytes: Any) -> Any:
    """memset."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], _BYTE_POINTER)
        cgutils.memset(builder, pointer, args[2], builder.trunc(args[1], ir.IntType(8)))
        return context.get_dummy_value()

    return types.void(types.uint64, types.int64, types.int64), generate


def _record_at(record: types.Record) -> Any:
    """An intrinsic that sees such a record at an address."""

    @intrinsic  # type: ignore[untyped-decorator]
    def record_at(typing_context: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], context.get_value_type(record))

        return record(types.uint64), generate

    return record_at


def _peek(kind: types.Type) -> Any:
    """An intrinsic that loads such a number from an address, aligned or not."""

    @intrinsic  # type: ignore[untyped-decorator]
    def peek(typing_context: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            pointer = builder.inttoptr(args[0], context.get_value_type(kind).as_pointer())
            return builder.load(pointer, align=1)

        return kind(types.uint64), generate

    return peek


@intrinsic  # type: ignore[untyped-decorator]
def add_int64(typing_context: Any, address: Any, value: Any) -> Any:
    """Add to the int64 at an address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        builder.store(builder.add(builder.load(pointer), args[1]), pointer)
        return context.get_dummy_value()

    return types.void(types.uint64, types.int64), generate


thread_at = _record_at(from_dtype(THREAD))
block_at = _record_at(from_dtype(BLOCK))
region_at = _record_at(from_dtype(REGION))
peek_uint8 = _peek(types.uint8)
peek_uint64 = _peek(types.uint64)
peek_int64 = _peek(types.int64)
