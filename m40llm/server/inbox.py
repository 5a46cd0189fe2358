"""Inbox: what the service's thread says, brought to the server's event loop.

A step of the engine makes a token for each request that runs; they all come over with one wake-up
of the loop.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

Taker = Callable[[Any], None]


class Inbox:
    """`open` it in the loop; `put` from any thread."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._items: deque[tuple[Taker, Any]] = deque()
        self._is_called = False  # the loop will empty it

    def open(self) -> None:
        """The running loop is the one that gets everything."""
        self._loop = asyncio.get_running_loop()

    def put(self, taker: Taker, item: Any) -> None:
        """`taker(item)` will be called in the loop, in the order of the puts."""
        self._items.append((taker, item))
        if not self._is_called and self._loop is not None:
            self._is_called = True
            try:
                self._loop.call_soon_threadsafe(self._empty)
            except RuntimeError:  # the loop has been closed: nobody is there to be told
                self._items.clear()

    def _empty(self) -> None:
        self._is_called = False  # before the first is taken: what is put from now on calls again
        while self._items:
            taker, item = self._items.popleft()
            taker(item)
