"""Two files of results beside each other: what got faster, what slower, what is in one only.

    python benchmarks/compare.py BEFORE.jsonl AFTER.jsonl [--over 2]

Where a file has a case more than once, its last row counts. `--over P`: only changes of more than
P percent. Times of different cards or kinds of code are compared, and it is said that they are.
"""

import argparse
import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rows import read_rows

SHOWN = 5  # cases that one file alone has
Rows = dict[tuple[str, str], dict[str, Any]]


def by_case(rows: list[dict[str, Any]]) -> Rows:
    return {(row["bench"], row["case"]): row for row in rows}


def made_by(rows: Rows) -> set[str]:
    """On what card, and with what code."""
    return {
        f"{row.get('device', 'unknown')}, code for {row.get('compiled_for') or row.get('code')}"
        for row in rows.values()
    }


def compared(before: Rows, after: Rows, over: float) -> tuple[Table, float]:
    """The table, and the geometric mean of all that both have: above 1 is faster."""
    table = Table()
    for name in ("benchmark", "case", "before", "after", "times as fast"):
        table.add_column(name, justify="left" if name in ("benchmark", "case") else "right")
    logs = []
    for key in sorted(before.keys() & after.keys()):
        old, new = before[key]["median"], after[key]["median"]
        logs.append(math.log(old / new))
        if abs(old / new - 1) * 100 >= over:
            table.add_row(*key, f"{old:,.2f} us", f"{new:,.2f} us", f"{old / new:.3f}")
    return table, math.exp(sum(logs) / len(logs)) if logs else math.nan


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--over", type=float, default=0.0, help="only changes of more percent")
    args = parser.parse_args(argv)
    before, after = (by_case(read_rows(path)) for path in (args.before, args.after))
    table, mean = compared(before, after, args.over)
    console = Console()
    console.print(table)
    n_both = len(before.keys() & after.keys())
    console.print(f"{n_both} cases in both; geometric mean of times as fast: {mean:.3f}")
    for name, rows, others in (("before", before, after), ("after", after, before)):
        if alone := sorted(rows.keys() - others.keys()):
            more = f"; and {len(alone) - SHOWN} more" if len(alone) > SHOWN else ""
            console.print(f"only {name}: {'; '.join(case for _, case in alone[:SHOWN])}{more}")
    if made_by(before) != made_by(after):
        for name, rows in (("before", before), ("after", after)):
            console.print(f"{name}: {' / '.join(sorted(made_by(rows)))}")


if __name__ == "__main__":
    main()
