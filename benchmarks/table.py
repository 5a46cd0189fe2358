"""Rows for a human: a rich table a benchmark, and one line a row while it runs."""

import sys

from cases import Row
from rich.console import Console
from rich.table import Table as RichTable

TIMED = ("case", "us [p20, p80]", "GB/s", "TFLOP/s", "of ceiling", "rival us", "times it", "error")
COUNTED = ("case", "sectors in", "least", "out", "least", "bank conflicts", "lanes", "error")
SECTOR_BYTES = 32


class Table:
    """Rows of one benchmark, printed at its end; a failure at once."""

    def __init__(self, stem: str, *, timed: bool) -> None:
        self._timed = timed
        self._table = RichTable(title=stem, title_justify="left")
        for at, column in enumerate(TIMED if timed else COUNTED):
            self._table.add_column(column, justify="right" if at else "left", overflow="fold")

    def add(self, row: Row) -> None:
        if row.error or (not row.median and not row.counters):
            self._table.add_row(row.case, *[""] * 6, row.error and f"FAILED {row.error[:60]}")
        elif self._timed:
            self._table.add_row(*timed_cells(row))
        else:
            self._table.add_row(*counted_cells(row))

    def print(self) -> None:
        Console(file=sys.stdout, width=132).print(self._table)


def timed_cells(row: Row) -> list[str]:
    assert row.median is not None
    return [
        row.case + ("" if row.cold else " (in L2)"),
        f"{row.median:.2f} [{row.p20:.2f}, {row.p80:.2f}]",
        f"{row.gb_per_s:.0f}",
        f"{row.tflop_per_s:.2f}" if row.flops else "",
        f"{row.of_ceiling:.0%} {row.bound}",
        f"{row.rival_median:.2f}" if row.rival_median else "-",
        f"{row.speedup:.2f}" if row.speedup else "-",
        f"{row.verified_to:.2f}",
    ]


def counted_cells(row: Row) -> list[str]:
    assert row.counters is not None
    return [
        row.case,
        f"{row.counters['load_sectors']:.0f}",
        f"{row.bytes_read / SECTOR_BYTES:.0f}",
        f"{row.counters['store_sectors']:.0f}",
        f"{row.bytes_written / SECTOR_BYTES:.0f}",
        f"{row.counters['bank_conflicts']:.0f}",
        f"{row.counters['lanes_a_load']:.1f}",
        f"{row.verified_to:.2f}",
    ]
