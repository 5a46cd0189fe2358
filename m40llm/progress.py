"""How long work reports itself: a callable that is told what is going on and how far it is."""

from collections.abc import Callable

Progress = Callable[[str, float], None]
"""progress(stage, fraction): what is going on, and how much of it is done, from 0 to 1."""


class BytesDone(float):
    """A fraction, from 0 to 1, that knows the bytes it is a fraction of."""

    n_done: int
    n_total: int

    def __new__(cls, n_done: int, n_total: int) -> "BytesDone":
        n_done = min(n_done, n_total)
        made = super().__new__(cls, n_done / n_total if n_total else 1.0)
        made.n_done, made.n_total = n_done, n_total
        return made


def silent(stage: str, fraction: float) -> None:
    """Progress that nobody asked for."""
