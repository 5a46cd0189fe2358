"""A card whose launches run on the emulator and take the time that a test says."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from m40llm.device.emulator.card import EmulatedCard


class FakeGraph:
    """What was launched while it was captured."""

    def __init__(self, card: "FakeCard") -> None:
        self._card = card
        self._has_run = False
        self.launches: list[Callable[[], None]] = []

    def replay(self) -> None:
        """Runs its launches at its first replay; later ones only take time."""
        self._card.now_ms += len(self.launches) * self._card.launch_us / 1e3
        if self._card.replays_run and not self._has_run:
            self._has_run = True
            for launch in self.launches:
                launch()


class FakeCard(EmulatedCard):
    """Time is counted, not measured; `replays_run=False` makes graphs that do nothing."""

    name = "fake:0"

    def __init__(self, launch_us: float, free_bytes: int, replays_run: bool = True) -> None:
        super().__init__(checks=False)
        self.launch_us = launch_us
        self.replays_run = replays_run
        self.now_ms = 0.0
        self.graph_sizes: list[int] = []
        self._free_bytes = free_bytes
        self._graph: FakeGraph | None = None

    def free_bytes(self) -> int:
        return self._free_bytes

    def launch(self, *args: Any, **options: Any) -> None:
        if self._graph is None:
            super().launch(*args, **options)
        else:
            run = super().launch
            self._graph.launches.append(lambda: run(*args, **options))

    @contextmanager
    def capture(self) -> Iterator[FakeGraph]:
        self._graph = graph = FakeGraph(self)
        yield graph
        self._graph = None
        self.graph_sizes.append(len(graph.launches))

    def event(self) -> float:
        return self.now_ms

    def elapsed_ms(self, start: float, stop: float) -> float:
        return stop - start

    def synchronize(self) -> None:
        pass
