"""A card's primary context, which all of a process share.

A kernel that reads where it must not breaks it for good: every later call of the driver fails, in
this process, whatever is reset or made anew. Another process is what helps (server/restart.py).
"""

from collections.abc import Callable
from typing import Any

from cuda.bindings import driver

from m40llm.device.cuda.driver import call


class Context:
    """Of card `index`; made this thread's. Raises DriverError where the card does not answer."""

    def __init__(self, index: int) -> None:
        call(driver.cuInit, 0)
        self.index = index
        self.device = call(driver.cuDeviceGet, index)
        self._handle = call(driver.cuDevicePrimaryCtxRetain, self.device)
        self.bind()

    def bind(self) -> None:
        """Make it the calling thread's."""
        call(driver.cuCtxSetCurrent, self._handle)

    def finish(self) -> None:
        """Wait for all work of all streams, in whichever thread."""
        self.bind()
        call(driver.cuCtxSynchronize)

    def give_back(self, free: Callable[[Any], Any], handle: Any) -> None:
        """Free what was made in it, from whichever thread; when the process ends it is gone."""
        driver.cuCtxSetCurrent(self._handle)
        free(handle)
