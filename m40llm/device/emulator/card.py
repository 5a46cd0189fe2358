"""The emulator as a card: the same launch wrappers run here and on a GPU."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m40llm.device.emulator.emulator import Emulator
from m40llm.device.host_memory import available_bytes
from m40llm.kernels.contract import Dim, Kernel
from m40llm.progress import Progress

Buffer = NDArray[Any]


class EmulatedCard:
    """Implements `device.gpu.card.Card`. `settings` are the emulator's: order, seed, checks, ..."""

    name = about = "emulator"
    n_sms = 2  # few blocks an attention row: a core runs them one after another
    has_time_limit = False
    max_steps = 1  # a launch returns when it is done: so each token is heard of when it is made

    def __init__(self, **settings: Any) -> None:
        self.emulator = Emulator(**settings)
        self._recorded: list[tuple[Any, ...]] | None = None

    @property
    def n_launches(self) -> int:
        return self.emulator.n_launches

    @property
    def n_compiled(self) -> int:
        """Kernels that this card had compiled, not found on disk."""
        return self.emulator.compiling.n_compiled

    def tell_compiling(self, progress: Progress | None) -> None:
        self.emulator.compiling.progress = progress

    def free_bytes(self) -> int:
        return available_bytes()

    def launch(
        self, kernel: Kernel, grid: Dim, block: Dim, *args: Any, shared_bytes: int = 0
    ) -> None:
        if self._recorded is not None:
            self._recorded.append((kernel, grid, block, args, shared_bytes))
            return
        self.emulator.launch(_Jitted(kernel), grid, block, args, shared_bytes=shared_bytes)

    def event(self) -> None:
        """A launch returns when it is done."""

    def has_come(self, event: Any) -> bool:
        return True

    @contextmanager
    def capture(self) -> Iterator["_Recording"]:
        self._recorded = []
        try:
            yield _Recording(self, self._recorded)
        finally:
            self._recorded = None

    def beside(self) -> AbstractContextManager[None]:
        return nullcontext()

    def join(self) -> None:
        """There is one order."""

    def alloc(self, shape: tuple[int, ...], dtype: Any) -> Buffer:
        return self.emulator.alloc(shape, dtype)

    def alloc_mapped(self, shape: tuple[int, ...], dtype: Any) -> tuple[Buffer, Buffer]:
        array = self.emulator.alloc(shape, dtype, fill=0)
        return array, array

    def upload(self, values: NDArray[Any]) -> Buffer:
        return self.emulator.upload(values, read_only=True)

    def write(self, buffer: Buffer, values: NDArray[Any]) -> None:
        self.emulator.write(buffer, values)

    def read(self, buffer: Buffer) -> NDArray[Any]:
        return np.array(buffer)

    def copy(self, source: Buffer, out: Buffer) -> None:
        self.emulator.write(out, np.array(source))


class _Recording:
    """What stands in for a CUDA graph."""

    def __init__(self, card: EmulatedCard, launches: list[tuple[Any, ...]]) -> None:
        self._card, self._launches = card, launches

    def replay(self) -> None:
        for kernel, grid, block, args, shared_bytes in self._launches:
            self._card.launch(kernel, grid, block, *args, shared_bytes=shared_bytes)


class _Jitted:
    """A kernel in the form of a `@cuda.jit` one: the function and its options."""

    def __init__(self, kernel: Kernel) -> None:
        self.py_func = kernel.function
        self.targetoptions = {"fastmath": kernel.fastmath}
