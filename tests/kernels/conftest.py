"""`launcher`: where the kernel tests run. The emulator, or with `-m gpu` the card.

x = launcher.upload(values)               a device array; read-only ones are checked
y = launcher.poisoned((3, 5), np.float32) NaN, and reading it is an error until written
op(x, y, stream=launcher)
launcher.read(y)
launcher.reordered(seed)                  the same with threads in an order drawn from a seed
"""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from m40llm.device.emulator.card import EmulatedCard


class EmulatedLauncher(EmulatedCard):
    """The emulator with its checks on."""

    def reordered(self, seed: int) -> "EmulatedLauncher":
        return EmulatedLauncher(order="random", seed=seed)

    def upload(self, values: NDArray[Any], *, read_only: bool = False) -> Any:
        return self.emulator.upload(values, read_only=read_only)

    def poisoned(self, shape: tuple[int, ...], dtype: Any = np.float32) -> Any:
        return self.emulator.alloc(shape, dtype)


def card_launcher() -> Any:
    """The first card, with the same calls; its threads take the order that they take."""
    from m40llm.device.cuda.card import CudaCard
    from m40llm.device.cuda.choose import choose_card

    class CardLauncher(CudaCard):
        def reordered(self, seed: int) -> "CardLauncher":
            return self

        def upload(self, values: NDArray[Any], *, read_only: bool = False) -> Any:
            return super().upload(np.asarray(values))

        def poisoned(self, shape: tuple[int, ...], dtype: Any = np.float32) -> Any:
            array = self.alloc(shape, dtype)
            if array.size:
                array.copy_to_device(_poison(shape, np.dtype(dtype)))
            return array

    return CardLauncher(choose_card(None).index)


def _poison(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Bytes of 0xFF: NaN in every floating-point type."""
    poison = np.empty(shape, dtype)
    poison.reshape(-1).view(np.uint8)[...] = 0xFF
    return poison


@pytest.fixture(scope="session", params=["emulator", pytest.param("card", marks=pytest.mark.gpu)])
def launcher(request: pytest.FixtureRequest) -> Any:
    return EmulatedLauncher() if request.param == "emulator" else card_launcher()
