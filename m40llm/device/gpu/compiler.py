"""What Numba makes of a kernel: argument types, and PTX for a card, with no driver."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
from numba import types
from numba.cuda import compiler, dispatcher
from numba.np.numpy_support import from_dtype

from m40llm.device.gpu.quick_numba import quick_numba
from m40llm.errors import KernelContractError
from m40llm.kernels.contract import Kernel

Capability = tuple[int, int]
compile_lock: Final = threading.RLock()  # Numba's compiler is one for all threads


def argument_key(value: Any) -> Any:
    """Equal for arguments of one type: what tells compiled kernels apart, at little cost."""
    if hasattr(value, "ndim") and not isinstance(value, np.generic):
        return value.dtype, value.ndim, _layout(value)
    return value.dtype if isinstance(value, np.generic) else type(value)


def argument_type(value: Any) -> types.Type:
    """The Numba type of an array (NumPy's or a card's) or a number."""
    dtype: Any = getattr(value, "dtype", None)
    if isinstance(value, np.generic):
        return from_dtype(dtype)
    if hasattr(value, "ndim"):
        return types.Array(from_dtype(dtype), value.ndim, _layout(value))
    for kind, numba_type in ((bool, types.boolean), (int, types.int64), (float, types.float64)):
        if isinstance(value, kind):
            return numba_type
    raise KernelContractError(f"argument: expected an array or a number, got {type(value)}")


def _layout(array: Any) -> str:
    flags = array.flags
    return "C" if flags["C_CONTIGUOUS"] else "F" if flags["F_CONTIGUOUS"] else "A"


def ptx_of(
    kernel: Kernel, arg_types: tuple[types.Type, ...], capability: Capability
) -> tuple[str, str]:
    """(name of the kernel's entry, its PTX)."""
    with compile_lock, device_functions_for(capability):
        ptx, _ = compiler.compile_ptx(
            kernel.function, types.void(*arg_types), fastmath=kernel.fastmath, cc=capability
        )
    entry = re.search(r"\.visible\s+\.entry\s+([\w$]+)", ptx)
    assert entry, "Numba emitted no kernel"
    return entry[1], ptx


@contextmanager
def device_functions_for(capability: Capability, *, lineinfo: bool = False) -> Iterator[None]:
    """Compile nested device functions for this capability, whatever card is there.

    Numba asks the driver which card a nested function is for; this answers in its place.
    """
    device, compile_cuda = dispatcher.get_current_device, dispatcher.compile_cuda

    def for_capability(*args: Any, **options: Any) -> Any:
        lines = {"lineinfo": True} if lineinfo else {}
        return compile_cuda(*args, **{**options, **lines, "cc": capability})

    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=capability)
    dispatcher.compile_cuda = for_capability
    try:
        with quick_numba():
            yield
    finally:
        dispatcher.get_current_device, dispatcher.compile_cuda = device, compile_cuda
