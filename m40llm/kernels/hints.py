"""What changes no result: assembly, which on the emulator does nothing (prelude.py has its twins).

prefetch(address)          prefetch.global.L2
value = pinned(value)      mov.b32, of which NVVM does not know what it does
"""

from typing import Any, Final

from llvmlite import ir
from numba import types
from numba.cuda.extending import intrinsic

PREFETCH: Final = "prefetch.global.L2 [$0];"
PINNED: Final = "mov.b32 $0, $1;"


@intrinsic
def prefetch(typing_context: Any, address: Any) -> Any:
    """Ask for the line of global memory at this address, an int64, to be brought into the L2."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(64)])
        builder.asm(kind, PREFETCH, "l,~{memory}", [args[0]], True)
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def pinned(typing_context: Any, value: Any) -> Any:
    """The same value, of 32 bits, which the compiler now knows nothing of: it stays in its register
    through a loop, where otherwise NVVM computes it again and again from what it was made of."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(32)
        return builder.asm(ir.FunctionType(word, [word]), PINNED, "=r,r", [args[0]], True)

    return value(value), generate
