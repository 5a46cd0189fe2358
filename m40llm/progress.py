"""How long work reports itself: a callable that is told what is going on and how far it is."""

from collections.abc import Callable

Progress = Callable[[str, float], None]
"""progress(stage, fraction): what is going on, and how much of it is done, from 0 to 1."""


def silent(stage: str, fraction: float) -> None:
    """Progress that nobody asked for."""
