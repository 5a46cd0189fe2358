"""What a benchmark says about one row to be, and the row that it becomes."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
from environment import Environment
from numpy.typing import NDArray
from rivals import Rival

from m40llm.kernels.contract import Launcher

T = TypeVar("T")
Arrays = dict[str, NDArray[Any]]
Buffers = dict[str, Any]


@dataclass(frozen=True)
class Scale:
    """Which shapes: a card's, or some so small that the emulator is done at once."""

    card: bool
    quick: bool

    def pick(self, small: list[T], large: list[T], n_quick: int) -> list[T]:
        """`large` on a card, its first `n_quick` if quick; else `small`, its first if quick."""
        if self.card:
            return large[:n_quick] if self.quick else large
        return small[:1] if self.quick else small


@dataclass(frozen=True)
class Case:
    """One row to be.

    arrays   makes the host's arrays by name; outputs are poisoned with `poison`
    launch   (buffers by name, stream): one call of a launch wrapper
    outputs  names of what it writes
    check    (arrays before, outputs after) -> the largest error as a share of its bound
    stacked  names whose first axis is the set: set i has array[i % n] (rows to gather, say)
    shared   names of which one buffer serves all sets
    others   timed for orientation alone: they do other work, in FP16 on tensor cores, say
    """

    name: str
    shape: dict[str, Any]
    arrays: Callable[[], Arrays]
    launch: Callable[[Buffers, Launcher], None]
    outputs: tuple[str, ...]
    check: Callable[[Arrays, Arrays], float]
    bytes_read: int
    bytes_written: int
    n_flops: int = 0
    rival: Rival | None = None
    stacked: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    others: tuple[Rival, ...] = ()


@dataclass(frozen=True)
class Row:
    """One line of JSON, with the environment's fields behind these. Times in microseconds."""

    bench: str
    case: str
    shape: dict[str, Any]
    verified_to: float | None = None
    median: float | None = None
    p20: float | None = None
    p80: float | None = None
    unit: str = "us"
    n_samples: int = 0
    n_sets: int = 1
    cold: bool | None = None
    bytes_read: int = 0
    bytes_written: int = 0
    flops: int = 0
    gb_per_s: float | None = None
    tflop_per_s: float | None = None
    bound: str | None = None
    ceiling: float | None = None
    ceiling_source: str | None = None
    of_ceiling: float | None = None
    rival: str | None = None
    rival_median: float | None = None
    rival_p20: float | None = None
    rival_p80: float | None = None
    rival_note: str | None = None
    speedup: float | None = None
    others: dict[str, float] | None = None
    counters: dict[str, float] | None = None
    error: str | None = None

    def line(self, where: Environment) -> str:
        return json.dumps({**asdict(self), **asdict(where)})


def poison(shape: tuple[int, ...], dtype: Any = np.float32) -> NDArray[Any]:
    """An output before the launch: NaN, or -1 for integers."""
    dtype = np.dtype(dtype)
    return np.full(shape, np.nan if dtype.kind == "f" else -1, dtype)
