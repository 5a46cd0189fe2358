"""One case: checked under two orders of threads, which must agree on every bit."""

from typing import Any

import numpy as np

from m40llm.fuzz.bench import Bench
from m40llm.fuzz.definition import Target
from m40llm.fuzz.launchers import open_launcher

SCHEDULES = 2  # orders in which each case runs


def check_case(target: Target, *, device: str = "emulator", schedule: int = 0, **case: Any) -> None:
    """Run one case of a target again, as a found failure prints it; raises what the check raises.

    schedule  where the emulator's orders of threads are drawn from
    """
    check_schedules(target, open_launcher(device), schedule, case)


def check_schedules(target: Target, launcher: Any, schedule: int, case: dict[str, Any]) -> None:
    """The case in each order; AssertionError if two of them read different bits."""
    first: list[Any] = []
    for turn in range(SCHEDULES):
        card = Bench(launcher.reordered(SCHEDULES * schedule + turn))
        with np.errstate(all="ignore"):  # references meet infinities, too
            target.run(card, case)
        if turn == 0:
            first = card.reads
            continue
        for n, (one, other) in enumerate(zip(first, card.reads, strict=True)):
            assert one.tobytes() == other.tobytes(), (
                f"a race: read {n} ({one.dtype}{list(one.shape)}) differs between two orders of "
                f"threads, {_difference(one, other)}"
            )


def _difference(one: Any, other: Any) -> str:
    """Where two arrays of the same shape differ first."""
    bits = [np.ascontiguousarray(x).reshape(-1).view(f"u{x.itemsize}") for x in (one, other)]
    at = int((bits[0] != bits[1]).argmax())
    where = ", ".join(map(str, np.unravel_index(at, one.shape)))
    return f"at [{where}]: {one.reshape(-1)[at]!r} and {other.reshape(-1)[at]!r}"
