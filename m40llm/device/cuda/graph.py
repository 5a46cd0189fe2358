"""What a stream keeps beside its work: events in it, and graphs of launches recorded once."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cuda.bindings import driver

from m40llm.device.cuda.driver import STREAM_WITHOUT_LEGACY_SYNC, call, is_done


class Graph:
    """Made by `CudaCard.capture`.

    stream  that launches are to be enqueued in while it is recorded
    """

    def __init__(self, stream: Any) -> None:
        self._main = self.stream = stream
        self._side: Any = None
        self._executable: Any = None
        self.keep_alive: list[Any] = []  # arguments of the launches

    def begin(self) -> None:
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        call(driver.cuStreamBeginCapture, self._main, mode)

    @contextmanager
    def beside(self) -> Iterator[None]:
        """What is launched inside has a branch of its own, up to `join`."""
        if self._side is None:
            self._side = call(driver.cuStreamCreate, STREAM_WITHOUT_LEGACY_SYNC)
        _let_wait(self._side, self._main)
        self.stream = self._side
        try:
            yield
        finally:
            self.stream = self._main

    def join(self) -> None:
        """What follows comes after the branch, too."""
        if self._side is not None:
            _let_wait(self._main, self._side)

    def end(self) -> None:
        graph = call(driver.cuStreamEndCapture, self._main)
        if self._side is not None:
            call(driver.cuStreamDestroy, self._side)
            self._side = None
        self._executable = call(driver.cuGraphInstantiate, graph, 0)
        call(driver.cuGraphDestroy, graph)

    def replay(self) -> None:
        """Enqueue the recorded launches."""
        call(driver.cuGraphLaunch, self._executable, self._main)

    def __del__(self) -> None:
        if self._executable is not None:
            driver.cuGraphExecDestroy(self._executable)


def _let_wait(later: Any, earlier: Any) -> None:
    """What is enqueued in one stream from now on comes after what is in the other."""
    event = call(driver.cuEventCreate, int(driver.CUevent_flags.CU_EVENT_DISABLE_TIMING))
    call(driver.cuEventRecord, event, earlier)
    call(driver.cuStreamWaitEvent, later, event, 0)
    call(driver.cuEventDestroy, event)


class Event:
    """A point in a stream's work."""

    def __init__(self, stream: Any) -> None:
        self.handle: Any = None
        self.handle = call(driver.cuEventCreate, 0)
        call(driver.cuEventRecord, self.handle, stream)

    def has_come(self) -> bool:
        """Whether the work before it is done."""
        return is_done(self.handle)

    def __del__(self) -> None:
        if self.handle is not None:
            driver.cuEventDestroy(self.handle)
