"""Files of results: JSON lines as the benchmarks write them, one a row."""

import json
from pathlib import Path
from typing import Any


def hand_over(row: dict[str, Any], out: Path | None) -> None:
    """Prints a row, and appends it to a file of results where one is wanted."""
    line = json.dumps(row)
    print(line, flush=True)
    if out:
        with out.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows that have a time. SystemExit, with what is wrong, for a file that has none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SystemExit(f"error: {path}: {getattr(error, 'strerror', None) or error}") from None
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            row["bench"], row["case"]
        except (ValueError, KeyError, TypeError):
            raise SystemExit(f"error: {path}, line {number}: not a row of a benchmark") from None
        if row.get("median"):
            rows.append(row)
    if not rows:
        raise SystemExit(f"error: {path}: no row that has a time")
    return rows
