"""A card's primary context: what all users of the card in a process share, until it breaks.

A kernel that reads where it must not breaks the context: every later call of the driver fails, in
whatever stream. Nothing mends it; but it can be thrown away with all that lies in it, and who
opens the card next gets another one. What was made in the old one is then gone already: to give it
back as well would free what the new one has at the same address.
"""

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from cuda.bindings import driver

from m40llm.device.cuda.driver import OUT_OF_MEMORY, DriverError, call

_lock: Final = threading.Lock()
_n_resets: Final[Counter[int]] = Counter()  # of each card, in this process


class Context:
    """The context of card `index` as it is now, made anew if it was found broken; of this thread.

    Raises DriverError where the card does not answer even then.
    """

    def __init__(self, index: int) -> None:
        call(driver.cuInit, 0)
        self.device = call(driver.cuDeviceGet, index)
        self.index = index
        with _lock:
            try:
                self._open()
            except DriverError as error:
                if error.result == OUT_OF_MEMORY:  # another process has it: nothing is broken
                    raise
                call(driver.cuDevicePrimaryCtxReset, self.device)
                _n_resets[index] += 1
                self._open()
            self._born = _n_resets[index]

    def bind(self) -> None:
        """Make it the calling thread's."""
        call(driver.cuCtxSetCurrent, self._handle)

    def finish(self) -> None:
        """Wait for all work of all streams, in whichever thread."""
        self.bind()
        call(driver.cuCtxSynchronize)

    def give_back(self, free: Callable[[Any], Any], handle: Any) -> None:
        """Free what was made in it, from whichever thread, unless it went with the context."""
        if _n_resets[self.index] == self._born:
            driver.cuCtxSetCurrent(self._handle)
            free(handle)

    def _open(self) -> None:
        self._handle = call(driver.cuDevicePrimaryCtxRetain, self.device)
        self.bind()
        call(driver.cuCtxSynchronize)  # says whether it is broken
