"""Seconds that are left, and whether a stage of some work should begin in them.

A stage takes what its work does, which its caller reckons, and what is beside it: mostly kernels
that are compiled. That is a guess at first, and then the most that it has taken so far.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager


class Budget:
    """guesses: by stage, seconds beside the reckoned ones."""

    def __init__(
        self,
        seconds: float,
        guesses: Mapping[str, float],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._now = now
        self._begin, self._end = now(), now() + seconds
        self._guesses = dict(guesses)
        self._seen: dict[str, float] = {}

    @property
    def spent(self) -> float:
        return self._now() - self._begin

    @property
    def left(self) -> float:
        return self._end - self._now()

    def why_not(self, stage: str, reckoned: float = 0.0) -> str:
        """ "" where the stage may begin."""
        wanted = reckoned + self._seen.get(stage, self._guesses[stage])
        if wanted <= self.left:
            return ""
        return f"it may take {wanted:.0f} s, {max(self.left, 0):.0f} s are left"

    @contextmanager
    def spend(self, stage: str, reckoned: float = 0.0) -> Iterator[None]:
        """What the stage takes beside the reckoned seconds is remembered, unless it fails."""
        begin = self._now()
        yield
        beside = max(self._now() - begin - reckoned, 0.0)
        self._seen[stage] = max(beside, self._seen.get(stage, 0.0))
