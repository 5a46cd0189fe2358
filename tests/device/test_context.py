"""A card's context that is broken is thrown away, and nothing of it is given back twice."""

from typing import Any

import pytest
from cuda.bindings import driver as real

from m40llm.device.cuda import context as module
from m40llm.device.cuda.context import Context
from m40llm.device.cuda.driver import DriverError

GOOD = real.CUresult.CUDA_SUCCESS
BROKEN = real.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
FULL = real.CUresult.CUDA_ERROR_OUT_OF_MEMORY


class FakeDriver:
    """A card whose context says `state` until it is reset, unless nothing mends it."""

    def __init__(self, *, mends: bool = True) -> None:
        self.state, self.n_contexts, self.mends = GOOD, 1, mends
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def function(*args: Any) -> tuple[Any, ...]:
            self.calls.append(name)
            if name == "cuDevicePrimaryCtxReset" and self.mends:
                self.state, self.n_contexts = GOOD, self.n_contexts + 1
            is_asked = name in ("cuCtxSynchronize", "cuCtxSetCurrent")
            value = {"cuDeviceGet": 0, "cuDevicePrimaryCtxRetain": self.n_contexts}.get(name)
            return (self.state if is_asked else GOOD, *([] if value is None else [value]))

        function.__name__ = name
        return function


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    fake = FakeDriver()
    monkeypatch.setattr(module, "driver", fake)
    return fake


def test_a_sound_context_is_shared(driver: FakeDriver) -> None:
    Context(0), Context(0)
    assert "cuDevicePrimaryCtxReset" not in driver.calls


def test_a_broken_context_is_made_anew(driver: FakeDriver) -> None:
    freed: list[int] = []
    old = Context(0)
    old.give_back(freed.append, 1)
    driver.state = BROKEN
    old.give_back(freed.append, 2)  # nobody has opened the card again: as the driver likes it
    new = Context(0)
    old.give_back(freed.append, 3)  # lies in the new context now
    new.give_back(freed.append, 4)
    assert freed == [1, 2, 4]
    assert driver.calls.count("cuDevicePrimaryCtxReset") == 1


def test_another_card_is_not_touched(driver: FakeDriver) -> None:
    freed: list[int] = []
    other = Context(1)
    driver.state = BROKEN
    Context(0)
    other.give_back(freed.append, 1)
    assert freed == [1]


def test_a_card_that_stays_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeDriver(mends=False)
    fake.state = BROKEN
    monkeypatch.setattr(module, "driver", fake)
    with pytest.raises(DriverError, match="ILLEGAL_ADDRESS"):
        Context(0)


def test_a_full_card_is_not_a_broken_one(driver: FakeDriver) -> None:
    driver.state = FULL
    with pytest.raises(DriverError, match="OUT_OF_MEMORY"):
        Context(0)
    assert "cuDevicePrimaryCtxReset" not in driver.calls
