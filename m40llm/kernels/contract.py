"""What a kernel is to whoever launches it, and the checks that every launch wrapper makes.

A kernel file compiles nothing by itself. Its `@cache def _compile(sizes)` returns a `Kernel`: the
plain Python function, closed over the sizes, with the options that Numba shall compile it with.
`stream` is the launcher of a device: `cuda` compiles and enqueues, the emulator runs; a kernel
cannot tell which.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from m40llm.errors import KernelContractError

Dim = int | tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Kernel:
    """A kernel's Python function and how to compile it.

    registers  the most that a thread may take on sm_52, which sets the occupancy; None: no limit
    fastmath   approximate division, exp and the like, FMA contraction; never where NaN matters
    """

    function: Callable[..., None]
    registers: int | None = None
    fastmath: bool = False

    @property
    def name(self) -> str:
        return self.function.__name__


class Launcher(Protocol):
    """Where a kernel runs: a CUDA stream, or the emulator."""

    @property
    def n_sms(self) -> int:
        """Multiprocessors: what a grid should fill."""
        ...

    def launch(
        self, kernel: Kernel, grid: Dim, block: Dim, *args: Any, shared_bytes: int = 0
    ) -> None:
        """Enqueues the kernel; args are device arrays and scalars of exact NumPy types."""
        ...


def check_array(
    name: str, array: Any, dtype: Any, shape: tuple[int | None, ...], *, optional: bool = False
) -> None:
    """KernelContractError unless `array` is C-contiguous, of this type and shape (None: any)."""
    if array is None and optional:
        return
    sizes = array.shape
    has_type = array.dtype == dtype
    if has_type and (sizes == shape or _sizes_fit(sizes, shape)):  # mostly equal, and asked often
        if array.flags["C_CONTIGUOUS"]:  # so do NumPy's flags and numba-cuda's dictionary call it
            return
        got = "strides"
    else:
        got = f"{np.dtype(array.dtype).name}{list(sizes)}"
    wanted = f"{np.dtype(dtype).name}[{', '.join('*' if n is None else str(n) for n in shape)}]"
    in_order = " in C order" if got == "strides" else ""
    raise KernelContractError(f"{name}: expected {wanted}{in_order}, got {got}")


def _sizes_fit(sizes: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    if len(sizes) != len(wanted):
        return False
    for size, want in zip(sizes, wanted, strict=True):
        if want is not None and want != size:
            return False
    return True


def ceil_div(a: int, b: int) -> int:
    """Blocks of b that cover a."""
    return -(-a // b)
