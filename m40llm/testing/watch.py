"""What a forward pass has at every site, and how far rounding may take it."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m40llm.model.batch import Batch
from m40llm.model.sites import Memory
from m40llm.model.staged import Model

Seen = dict[str, NDArray[Any]]


class Watch:
    """Hooks that keep all that there is, [rows, ...] each, and change nothing."""

    def __init__(self) -> None:
        self.seen: Seen = {}

    def begin(self, batch: Batch) -> None: ...

    def wants(self, site: str) -> bool:
        return True

    def visit(
        self, site: str, memory: Memory, buffer: Any, rows: NDArray[np.int32] | None = None
    ) -> None:
        values = memory.read(buffer)
        assert site not in self.seen, f"{site} was visited twice"
        self.seen[site] = values.reshape(len(values), -1)


def watched(model: Model, ids: list[int]) -> Seen:
    """Every site of a pass over the ids."""
    model.hooks = watch = Watch()
    try:
        model.forward(Batch.of((0, 0, ids), logits="all"))
    finally:
        model.hooks = None
    return watch.seen


def spread(make: Callable[[int], Model], ids: list[int], exact: Seen) -> Seen:
    """How far each row of each site may stray: float64[rows].

    Four noisy runs show it (noisy_ops.py), and the true error is one more draw of it, so twice the
    widest. Scores are left out: they are infinite where masked.
    """
    runs = [watched(make(seed), ids) for seed in range(4)]
    return {
        site: 2 * np.max([np.abs(run[site] - values).max(axis=1) for run in runs], axis=0)
        for site, values in exact.items()
        if not site.endswith(".scores")
    }
