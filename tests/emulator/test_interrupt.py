"""Ctrl-C: no core goes on with memory that its caller may free, and no interruption is lost."""

import os
import signal
from typing import Any

import numpy as np
import pytest
from numba import cuda

from m40llm.device.emulator import Emulator, launch
from m40llm.device.emulator.interrupts import interrupt_later


def fill(x):
    x[cuda.grid(1)] = cuda.grid(1)


def test_a_launch_waits_for_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    running: list[Any] = []
    real_wait, came = launch.wait, []

    def wait(futures: list[Any]) -> Any:
        running[:] = futures
        if not came:
            came.append(True)
            raise KeyboardInterrupt
        return real_wait(futures)

    monkeypatch.setattr(launch, "wait", wait)
    emulator = Emulator(n_threads=2)
    x = emulator.alloc(1 << 16, np.int32)
    with pytest.raises(KeyboardInterrupt):
        emulator.launch(fill, 256, 256, (x,))
    assert len(running) == 2
    assert all(future.done() for future in running)
    emulator.launch(fill, 256, 256, (x,))  # and the emulator is as good as new
    np.testing.assert_array_equal(x, np.arange(1 << 16))


def test_interrupt_later() -> None:
    reached = []

    def block() -> None:
        with interrupt_later():
            os.kill(os.getpid(), signal.SIGINT)
            reached.append(True)

    with pytest.raises(KeyboardInterrupt):
        block()
    assert reached
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
