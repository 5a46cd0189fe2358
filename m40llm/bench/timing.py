"""Time on a card without the cost of launches: graphs of launches, replayed between two events."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np

MIN_SAMPLE_MS: Final = 2.0  # a sample takes at least this: an event is good to about 1 us
MAX_REPLAYS: Final = 2000


@dataclass(frozen=True)
class Times:
    """Microseconds a launch: the median and the 20th and 80th percentile of the samples."""

    median: float
    p20: float
    p80: float
    n_samples: int


def times_of(samples: list[float]) -> Times:
    p20, median, p80 = (float(value) for value in np.percentile(samples, [20, 50, 80]))
    return Times(median, p20, p80, len(samples))


class Graph(Protocol):
    """Launches that were captured."""

    def replay(self) -> None: ...


class Clock(Protocol):
    """A card, or torch's side of it: events on the stream that graphs are replayed on."""

    def event(self) -> Any: ...

    def elapsed_ms(self, start: Any, stop: Any) -> float: ...


class HostClock:
    """For a card whose launches are done when they return: the emulator."""

    def event(self) -> float:
        return time.perf_counter()

    def elapsed_ms(self, start: float, stop: float) -> float:
        return 1e3 * (stop - start)


def clock_of(card: Any) -> Clock:
    """The card's own events, or the host's clock where it has none that tell time."""
    return card if hasattr(card, "elapsed_ms") else HostClock()


@dataclass(frozen=True)
class Work:
    """What is timed: a graph that has been replayed before, on its clock."""

    clock: Clock
    graph: Graph


def time_in_turn(works: Sequence[Work], n_launches: int, n_samples: int) -> list[Times]:
    """Times of one of each graph's `n_launches`. Each gives a sample in turn: a card that slows
    down as it grows warm does it to all."""
    n_replays = [_replays_of_a_sample(work) for work in works]
    for work, n in zip(works, n_replays, strict=True):
        replayed_ms(work, n)  # at the clock rate that the card will keep
    samples: list[list[float]] = [[] for _ in works]
    for _ in range(n_samples):
        for work, n, found in zip(works, n_replays, samples, strict=True):
            found.append(1e3 * replayed_ms(work, n) / (n * n_launches))
    return [times_of(found) for found in samples]


def _replays_of_a_sample(work: Work) -> int:
    once_ms = min(replayed_ms(work, 1) for _ in range(2))
    return min(max(1, math.ceil(MIN_SAMPLE_MS / max(once_ms, 1e-4))), MAX_REPLAYS)


def replayed_ms(work: Work, n_replays: int) -> float:
    """Milliseconds of so many replays, one after another."""
    start = work.clock.event()
    for _ in range(n_replays):
        work.graph.replay()
    return work.clock.elapsed_ms(start, work.clock.event())


def time_launches(card: Any, launches: list[Callable[[], None]], n_samples: int) -> Times:
    """Times of one of these launches, each captured once; they have run before."""
    with card.capture() as graph:
        for launch in launches:
            launch()
    graph.replay()
    return time_in_turn([Work(clock_of(card), graph)], len(launches), n_samples)[0]
