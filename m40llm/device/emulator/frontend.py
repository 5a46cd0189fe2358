"""From a Python kernel to the LLVM IR that Numba emits for it, typed for sm_52, with no driver."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Final

from numba import types
from numba.cuda import compiler

from m40llm.device.emulator.errors import UnsupportedKernelError
from m40llm.device.gpu.compiler import (
    argument_key,
    argument_type,
    compile_lock,
    device_functions_for,
)

__all__ = ["argument_key", "argument_type", "no_driver_needed", "numba_ir", "python_function"]

COMPUTE_CAPABILITY: Final = (5, 2)


def python_function(kernel: Any) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The plain function behind a kernel and the options of its `@cuda.jit`, if it has one."""
    py_func = getattr(kernel, "py_func", kernel)
    if not callable(py_func):
        raise UnsupportedKernelError(f"kernel: expected a function or a dispatcher, got {kernel!r}")
    return py_func, dict(getattr(kernel, "targetoptions", {}))


def numba_ir(
    py_func: Callable[..., Any], arg_types: tuple[types.Type, ...], options: Mapping[str, Any]
) -> list[str]:
    """LLVM IR of the kernel, then of each device function that it calls, with source lines."""
    with compile_lock, no_driver_needed():
        result = compiler.compile_cuda(
            py_func,
            types.void,
            arg_types,
            lineinfo=True,
            fastmath=options.get("fastmath", False),
            cc=COMPUTE_CAPABILITY,
        )
        return list(result.library.llvm_strs)


def no_driver_needed() -> AbstractContextManager[None]:
    """Compile nested device functions for sm_52, with source lines, whatever card is there."""
    return device_functions_for(COMPUTE_CAPABILITY, lineinfo=True)
