"""What a stream keeps beside its work: events in it, and graphs of launches recorded once."""

from typing import Any

from cuda.bindings import driver

from m40llm.device.cuda.driver import call, is_done


class Graph:
    """Made by `CudaCard.capture`."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._executable: Any = None
        self.keep_alive: list[Any] = []  # arguments of the launches

    def begin(self) -> None:
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        call(driver.cuStreamBeginCapture, self._stream, mode)

    def end(self) -> None:
        graph = call(driver.cuStreamEndCapture, self._stream)
        self._executable = call(driver.cuGraphInstantiate, graph, 0)
        call(driver.cuGraphDestroy, graph)

    def replay(self) -> None:
        """Enqueue the recorded launches."""
        call(driver.cuGraphLaunch, self._executable, self._stream)

    def __del__(self) -> None:
        if self._executable is not None:
            driver.cuGraphExecDestroy(self._executable)


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
