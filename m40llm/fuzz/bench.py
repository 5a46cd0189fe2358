"""Bench: where a check runs its one case, which notes what it launched and read."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m40llm.fuzz.fp64 import assert_no_fp64
from m40llm.fuzz.launchers import LauncherForTests
from m40llm.kernels.contract import Dim, Kernel


class Bench:
    """Memory and launches of one case; an op takes it as its `stream`.

    launcher  one of launchers.py, its threads in the order that the case says
    reads     what was read, in turn: two schedules must agree on every bit of it
    """

    def __init__(self, launcher: LauncherForTests) -> None:
        self._launcher = launcher
        self._guarded: list[Any] = []
        self.reads: list[NDArray[Any]] = []

    @property
    def n_sms(self) -> int:
        """Multiprocessors of what it runs on."""
        return self._launcher.n_sms

    def upload(self, values: Any, *, read_only: bool = True) -> Any:
        """A device array with these values; a kernel may write to it with read_only=False."""
        return self._launcher.upload(np.ascontiguousarray(values), read_only=read_only)

    def poisoned(self, shape: int | tuple[int, ...], dtype: Any = np.float32) -> Any:
        """A device array of NaN; for the emulator, of nothing: reading it first is an error."""
        return self._launcher.poisoned((shape,) if isinstance(shape, int) else shape, dtype)

    def guarded(self, shape: tuple[int, ...], dtype: Any = np.float32) -> Any:
        """The same with a row at either end that nobody may write to; looked at in the end."""
        buffer = self.poisoned((shape[0] + 2, *shape[1:]), dtype)
        self._guarded.append(buffer)
        return buffer[1:-1]

    def launch(self, kernel: Any, grid: Dim, block: Dim, *args: Any, shared_bytes: int = 0) -> None:
        """Run a Kernel, a `@cuda.jit` function or a plain one; then look for FP64 in its code."""
        known = kernel if isinstance(kernel, Kernel) else _kernel_of(kernel)
        self._launcher.launch(known, grid, block, *args, shared_bytes=shared_bytes)
        assert_no_fp64(self._launcher, known, args)

    def read(self, buffer: Any, seen_as: Callable[[Any], Any] | None = None) -> NDArray[Any]:
        """The values of a device array, on the host.

        seen_as  of the values what may not depend on the order of threads: all, unless it says so
        """
        values = np.array(self._launcher.read(buffer))
        self.reads.append(values if seen_as is None else np.asarray(seen_as(values)))
        return values

    def check_guards(self) -> None:
        """AssertionError where a guard row was written to."""
        for buffer in self._guarded:
            rows = np.array(self._launcher.read(buffer))[[0, -1]]
            touched = (rows.reshape(2, -1).view(np.uint8) != 0xFF).any(axis=1)
            side = " and ".join(n for n, t in zip(("before", "after"), touched, strict=True) if t)
            assert not touched.any(), f"the guard row {side} {buffer.dtype}{rows.shape} was written"


@cache
def _kernel_of(function: Any) -> Kernel:
    """A `@cuda.jit` dispatcher, or a Python function, as a Kernel."""
    options = getattr(function, "targetoptions", {})
    plain = getattr(function, "py_func", function)
    return Kernel(plain, options.get("max_registers"), bool(options.get("fastmath")))
