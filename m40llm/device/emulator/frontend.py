"""From a Python kernel to the LLVM IR that Numba emits for it, typed for sm_52, with no driver."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
from numba import types
from numba.cuda import compiler, dispatcher
from numba.np.numpy_support import from_dtype

from m40llm.device.emulator.errors import UnsupportedKernelError

COMPUTE_CAPABILITY: Final = (5, 2)
_compile_lock = threading.RLock()


def python_function(kernel: Any) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The plain function behind a kernel and the options of its `@cuda.jit`, if it has one."""
    py_func = getattr(kernel, "py_func", kernel)
    if not callable(py_func):
        raise UnsupportedKernelError(f"kernel: expected a function or a dispatcher, got {kernel!r}")
    return py_func, dict(getattr(kernel, "targetoptions", {}))


def argument_key(value: Any) -> Any:
    """Equal for arguments of one type: what tells compiled kernels apart, at little cost."""
    if isinstance(value, np.ndarray):
        return value.dtype, value.ndim, _layout(value)
    return value.dtype if isinstance(value, np.generic) else type(value)


def argument_type(value: Any) -> types.Type:
    """The Numba type under which a launch on a card would compile this argument."""
    dtype: Any = getattr(value, "dtype", None)
    if isinstance(value, np.ndarray):
        return types.Array(from_dtype(dtype), value.ndim, _layout(value))
    if isinstance(value, np.generic):
        return from_dtype(dtype)
    for kind, numba_type in ((bool, types.boolean), (int, types.int64), (float, types.float64)):
        if isinstance(value, kind):
            return numba_type
    raise UnsupportedKernelError(f"argument: expected an array or a number, got {type(value)}")


def _layout(array: Any) -> str:
    return "C" if array.flags.c_contiguous else "F" if array.flags.f_contiguous else "A"


def numba_ir(
    py_func: Callable[..., Any], arg_types: tuple[types.Type, ...], options: Mapping[str, Any]
) -> list[str]:
    """LLVM IR of the kernel, then of each device function that it calls, with source lines."""
    with _compile_lock, no_driver_needed():
        result = compiler.compile_cuda(
            py_func,
            types.void,
            arg_types,
            lineinfo=True,
            fastmath=options.get("fastmath", False),
            cc=COMPUTE_CAPABILITY,
        )
    return list(result.library.llvm_strs)


@contextmanager
def no_driver_needed() -> Iterator[None]:
    """Compile nested device functions for sm_52, with source lines, whatever card is there.

    Numba asks the driver which card a nested function is for; this answers in its place.
    """
    device, compile_cuda = dispatcher.get_current_device, dispatcher.compile_cuda

    def with_lines(*args: Any, **options: Any) -> Any:
        return compile_cuda(*args, **{**options, "lineinfo": True, "cc": COMPUTE_CAPABILITY})

    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=COMPUTE_CAPABILITY)
    dispatcher.compile_cuda = with_lines
    try:
        yield
    finally:
        dispatcher.get_current_device, dispatcher.compile_cuda = device, compile_cuda
