"""Files of results: two beside each other, and as plots."""

import json
from pathlib import Path
from typing import Any

import compare
import plot
import pytest


def row(n_tokens: int, median: float, **more: Any) -> dict[str, Any]:
    flops = 2 * n_tokens * 64 * 64
    shape = {"type": "F16", "n_tokens": n_tokens, "n_rows": 64, "n_cols": 64, "x": "float32"}
    return {
        "bench": "gemm", "case": f"F16 {n_tokens}", "shape": shape, "median": median,
        "flops": flops, "bytes_read": 8192, "bytes_written": 4096, "speedup": 1.5,
        "tflop_per_s": flops / median / 1e6, "bound": "fma", "ceiling": 5e13, "device": "a card",
        "compiled_for": "sm_52", **more,
    }  # fmt: skip


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")
    return str(path)


def test_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = written(tmp_path / "a", [row(16, 20.0), row(16, 10.0), row(32, 20.0), row(64, 1.0)])
    after = written(tmp_path / "b", [row(16, 5.0), row(32, 20.0, device="another card")])
    compare.main([before, after, "--over", "1"])
    said = capsys.readouterr().out
    assert "2.000" in said  # the last row of a case counts
    assert "F16 32" not in said.split("only before")[0]
    assert "2 cases in both; geometric mean of times as fast: 1.414" in said
    assert "only before: F16 64" in said
    assert "another card" in said


def test_plots(tmp_path: Path) -> None:
    steps = [
        row(n, 10.0, bench="ladder", shape={"step": f"{n} tiles", "size": 64}, rival_median=5.0)
        for n in (1, 2)
    ]
    both = [row(16, 10.0), row(32, 20.0, bound="read", ceiling=3e12)]
    rows = written(tmp_path / "rows", [*both, *steps])
    plot.main([rows, "--out", str(tmp_path / "plots")])
    for name in ("roofline", "gemm", "ladder"):
        for kind in ("png", "svg"):
            assert (tmp_path / "plots" / f"{name}.{kind}").stat().st_size > 1000
    with pytest.raises(SystemExit, match="nothing to plot"):
        plot.main([written(tmp_path / "c", [{**row(16, 1.0), "bench": "rope", "flops": 0}])])


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "no row that has a time"),
        ("{", "line 1: not a row"),
        ("[1]", "line 1: not a row"),
        ('{"bench": "gemm"}', "line 1: not a row"),
        ('{"bench": "gemm", "case": "a", "median": null}', "no row that has a time"),
    ],
)
def test_what_is_no_file_of_results(tmp_path: Path, text: str, wrong: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(text, encoding="utf-8")
    for main in (lambda: compare.main([str(path), str(path)]), lambda: plot.main([str(path)])):
        with pytest.raises(SystemExit, match=wrong):
            main()
    with pytest.raises(SystemExit, match="No such file"):
        plot.main([str(tmp_path / "none.jsonl")])
