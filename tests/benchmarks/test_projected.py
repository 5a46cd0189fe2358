"""Stored rows are projected, and counted as within the range or not; kernels have one code here."""

import json
import sys
from pathlib import Path
from typing import Any

import projected
import pytest

from m40llm.sm52.cards import CARDS
from m40llm.sm52.code import Code
from m40llm.sm52.sass import parse

RESULTS = Path(projected.__file__).parent / "results"


def rows_of(bench: str) -> list[dict[str, Any]]:
    lines = [line for path in RESULTS.glob("*-h100-sm52.jsonl") for line in path.open()]
    return [row for row in map(json.loads, lines) if row["bench"] == bench]


@pytest.mark.parametrize("bench", ["gemm", "rms_norm", "scale", "attention_prefill"])
def test_bytes_and_flops_are_the_benchmarks_own(bench: str) -> None:
    """What a launch has to move and to compute, counted there by hand."""
    found = 0
    for row in rows_of(bench):
        for launch in projected.launches(row, CARDS["h100"]):
            found += 1
            assert launch.work.n_flops in (row["flops"], 0), row["case"]
            moved = row["bytes_read"] + row["bytes_written"]
            if launch.grid[2:] in ((), (1,)):  # else sums of splits besides
                assert launch.work.n_bytes == pytest.approx(moved, rel=0.02, abs=64), row["case"]
    assert found > 2


def test_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(projected, "code_of", lambda *args: Code(32, 0, 0, parse("")))
    monkeypatch.setattr(projected, "find_disassembler", lambda: Path("nvdisasm"))
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows_of("scale"))))
    monkeypatch.setattr(sys, "argv", ["projected.py", str(path), "--only", "scale 4096", "--rows"])
    projected.main()
    told = capsys.readouterr().out
    assert "47.4 us, projected 43.6 to 55.1, memory: scale scale 4096x4096" in told
    assert "scale" in told.splitlines()[-2]
