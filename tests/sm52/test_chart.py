"""The chart of a projection: a bar a kernel, PNG and SVG, and what cannot be drawn."""

from pathlib import Path
from typing import Any

import pytest

from m40llm.errors import RequestError
from m40llm.pictures import save
from m40llm.sm52.chart import chart


def kernel(step: str, name: str, bound: str, count: int, low: float, high: float) -> dict[str, Any]:
    return {"step": step, "kernel": name, "bound": bound, "count": count, "us": [low, high]}


DOCUMENT: dict[str, Any] = {
    "card": "Tesla M40 24 GB",
    "what": "projected, not measured",
    "decode": {"tokens_per_s": [10.0, 20.0]},
    "prefill": {"tokens_per_s": [1000.0, 2000.0]},
    "kernels": [
        kernel("decode", "gemv", "memory", 10, 100.0, 200.0),
        kernel("decode", "gemv", "memory", 5, 1000.0, 2000.0),
        kernel("decode", "rms_norm", "latency", 1, 1.0, 6.0),
        kernel("prefill", "gemm", "issue", 3, 500.0, 900.0),
    ],
}


def test_a_bar_a_kernel() -> None:
    decode, prefill = chart(DOCUMENT).axes
    names = [label.get_text() for label in decode.get_yticklabels()]
    assert names == ["rms_norm", "gemv"]
    ends = [patch.get_x() + patch.get_width() for patch in decode.patches]
    assert ends == pytest.approx([0.001, 0.006, 6.0, 12.0])
    assert prefill.get_title() == "prefill: 1,000 to 2,000 tokens/s"


def test_a_part_of_a_model_has_no_rate() -> None:
    part = {"tokens_per_s": None, "ms": [10.0, 20.5]}
    decode, _ = chart({**DOCUMENT, "decode": part}).axes
    assert decode.get_title() == "decode: 10 to 20.5 ms, of the layers on the card"


def test_both_files(tmp_path: Path) -> None:
    png, svg = save(chart(DOCUMENT), tmp_path / "chart.svg")
    assert png.read_bytes()[:4] == b"\x89PNG"
    assert svg.read_text(encoding="utf-8").rstrip().endswith("</svg>")


def test_nothing_to_draw() -> None:
    with pytest.raises(RequestError, match="chart: there are no times: no layers fit"):
        chart({**DOCUMENT, "kernels": []})
