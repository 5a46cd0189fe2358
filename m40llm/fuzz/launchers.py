"""Where kernels under test run: the emulator with its checks on, or a card, with the same calls.

x = launcher.upload(values)               a device array; read-only ones are checked
y = launcher.poisoned((3, 5), np.float32) NaN, and reading it is an error until written
op(x, y, stream=launcher)
launcher.read(y)
launcher.reordered(seed)                  the same with threads in an order drawn from a seed
"""

import re
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from m40llm.device.numba_cuda import numba_cuda_problem
from m40llm.errors import DeviceError, RequestError
from m40llm.kernels.contract import Launcher

if problem := numba_cuda_problem():
    raise DeviceError(f"fuzzing: {problem}")

from m40llm.device.emulator.card import EmulatedCard


class LauncherForTests(Launcher, Protocol):
    """What a test needs of a card."""

    def reordered(self, seed: int) -> "LauncherForTests": ...

    def upload(self, values: NDArray[Any], *, read_only: bool = False) -> Any: ...

    def upload_sparse(self, values: NDArray[Any], *, read_only: bool = False) -> Any: ...

    def poisoned(self, shape: tuple[int, ...], dtype: Any = np.float32) -> Any: ...

    def read(self, buffer: Any) -> NDArray[Any]: ...


class EmulatedLauncher(EmulatedCard):
    """The emulator with its checks on; `settings` are the emulator's."""

    def reordered(self, seed: int) -> "EmulatedLauncher":
        """Threads in a drawn order, on one core: the same seed gives the same run."""
        return EmulatedLauncher(order="random", seed=seed, n_threads=1)

    def upload(self, values: NDArray[Any], *, read_only: bool = False) -> Any:
        return self.emulator.upload(values, read_only=read_only)

    def upload_sparse(self, values: NDArray[Any], *, read_only: bool = False) -> Any:
        """The array itself: a copy would take memory for every page that nobody touches."""
        return values

    def poisoned(self, shape: tuple[int, ...], dtype: Any = np.float32) -> Any:
        return self.emulator.alloc(shape, dtype)


def open_launcher(device: str) -> Any:
    """The launcher of "emulator", "cuda" or "cuda:N"; DeviceError where there is no such card."""
    match = re.fullmatch(r"emulator|cuda(?::(-1|\d+))?", device)
    if not match:
        raise RequestError(f"device: expected emulator, cuda or cuda:N, got {device!r}")
    if device == "emulator":
        return EmulatedLauncher()
    number = match[1] or ""
    return card_launcher(int(number) if number not in ("", "-1") else None)


def card_launcher(index: int | None = None) -> Any:
    """A card (None: as `--device cuda` chooses); its threads take the order that they take."""
    from m40llm.device.cuda.choose import choose_card

    chosen = choose_card(index)
    from m40llm.device.cuda.card import CudaCard

    class CardLauncher(CudaCard):
        def reordered(self, seed: int) -> "CardLauncher":
            return self

        def upload(self, values: NDArray[Any], *, read_only: bool = False) -> Any:
            return super().upload(np.asarray(values))

        upload_sparse = upload  # a card has no sparse memory

        def poisoned(self, shape: tuple[int, ...], dtype: Any = np.float32) -> Any:
            array = self.alloc(shape, dtype)
            if array.size:
                self.write(array, _poison(shape, np.dtype(dtype)))
            return array

    return CardLauncher(chosen.index)


def _poison(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Bytes of 0xFF: NaN in every floating-point type."""
    poison: NDArray[Any] = np.empty(shape, dtype)
    poison.reshape(-1).view(np.uint8)[...] = 0xFF
    return poison
