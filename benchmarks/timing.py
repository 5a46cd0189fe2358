"""Time on a card without the cost of launches: graphs of launches, replayed between two events."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

MIN_SAMPLE_MS = 2.0  # a sample takes at least this: an event is good to about 1 us
MAX_REPLAYS = 2000


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


def time_graph(clock: Clock, graph: Graph, n_launches: int, n_samples: int) -> Times:
    """Times of one of the graph's `n_launches`; the graph has been replayed before."""
    once_ms = min(_replayed_ms(clock, graph, 1) for _ in range(2))
    n_replays = min(max(1, math.ceil(MIN_SAMPLE_MS / max(once_ms, 1e-4))), MAX_REPLAYS)
    _replayed_ms(clock, graph, n_replays)  # at the clock rate that the card will keep
    samples = [_replayed_ms(clock, graph, n_replays) for _ in range(n_samples)]
    return times_of([1e3 * ms / (n_replays * n_launches) for ms in samples])


def _replayed_ms(clock: Clock, graph: Graph, n_replays: int) -> float:
    start = clock.event()
    for _ in range(n_replays):
        graph.replay()
    return clock.elapsed_ms(start, clock.event())


def time_launches(card: Any, launches: list[Callable[[], None]], n_samples: int) -> Times:
    """Times of one of these launches, each captured once; they have run before."""
    with card.capture() as graph:
        for launch in launches:
            launch()
    graph.replay()
    return time_graph(card, graph, len(launches), n_samples)
