"""Card: memory and launches, all that the GPU ops need of a device. A real one, or the emulator."""

from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from m40llm.kernels.contract import Launcher
from m40llm.progress import Progress

Buffer = Any


class Card(Launcher, Protocol):
    """Device memory beside the launcher. Buffers have shape, dtype, slices and reshape."""

    @property
    def name(self) -> str:
        """ "cuda:0", "emulator"."""
        ...

    @property
    def about(self) -> str:
        """The card, the architecture of its code and its driver, in words."""
        ...

    @property
    def has_time_limit(self) -> bool:
        """Whether a launch that takes seconds is broken off: on a card that drives a display."""
        ...

    @property
    def n_launches(self) -> int:
        """Launches so far: a test counts that no op went around the kernels."""
        ...

    def tell_compiling(self, progress: Progress | None) -> None:
        """From now on, tell of each kernel that has to be compiled: 0.0, and 1.0 when it is."""
        ...

    @property
    def max_steps(self) -> int:
        """Steps that one launch may make before it ends: few where a launch must not take long."""
        ...

    def event(self) -> Any:
        """A point in the work that has been enqueued."""
        ...

    def has_come(self, event: Any) -> bool:
        """Whether the work before it is done."""
        ...

    def capture(self) -> AbstractContextManager[Any]:
        """Launches inside are recorded, not run: replay() of what it gives runs them all."""
        ...

    def beside(self) -> AbstractContextManager[None]:
        """In what is recorded, launches inside run beside those that follow, up to `join`: both
        must leave alone what the other one writes. Elsewhere they have their turn."""
        ...

    def join(self) -> None:
        """What follows comes after all that was launched."""
        ...

    def free_bytes(self) -> int:
        """Memory that is left."""
        ...

    def alloc(self, shape: tuple[int, ...], dtype: Any) -> Buffer:
        """An uninitialised array."""
        ...

    def alloc_mapped(self, shape: tuple[int, ...], dtype: Any) -> tuple[Buffer, NDArray[Any]]:
        """A zeroed array in pinned host memory: (as kernels see it, as the host sees it)."""
        ...

    def upload(self, values: NDArray[Any]) -> Buffer:
        """A read-only array with these values."""
        ...

    def write(self, buffer: Buffer, values: NDArray[Any]) -> None:
        """Host -> device."""
        ...

    def read(self, buffer: Buffer) -> NDArray[np.generic]:
        """Device -> host, after all work that was enqueued."""
        ...

    def copy(self, source: Buffer, out: Buffer) -> None:
        """Device -> device, one shape and type."""
        ...
