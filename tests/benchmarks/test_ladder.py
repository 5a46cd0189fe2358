"""The ladder's steps are right, on the emulator; the first ones save what memory moves."""

import sys
from pathlib import Path

from cases import Scale
from harness import Bench, open_card

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "ladder"))

import climb


def test_every_step_is_verified() -> None:
    bench = Bench(open_card("emulator"), timed=False, quick=False)
    rows = list(bench.run("ladder", climb.cases))
    assert [row.error for row in rows] == [None] * 7
    sectors = [row.counters["load_sectors"] for row in rows if row.counters]
    assert sectors[0] > 10 * sectors[1] > 10 * sectors[3]


def test_a_card_gets_the_large_size() -> None:
    names = [case.name for case in climb.cases(Scale(card=True, quick=True))]
    assert len(names) == 7
    assert all(name.endswith("4096^3") for name in names)
