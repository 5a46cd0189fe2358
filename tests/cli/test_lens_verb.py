"""`m40llm lens`: table, JSON document, report, and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


@pytest.fixture
def lens(run: Run, tiny_model: str) -> Run:
    return lambda *args: run("lens", tiny_model, "--device", "cpu", *args)


def test_a_row_a_layer(lens: Run) -> None:
    result = lens("-p", "hello", "--top", "2")
    assert result.exit_code == 0, result.output
    names = [line.split()[0] for line in result.stdout.splitlines()]
    assert names == ["layer", "embd", "0", "1"]


def test_json(lens: Run, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    result = lens("-p", "hello", "--top", "3", "--out", str(page), "--json")
    made = json.loads(result.stdout)
    assert set(made) == {"model", "device", "prompt_ids", "layers", "report"}
    assert [set(layer) for layer in made["layers"]] == [{"site", "entropy", "top"}] * 3
    assert set(made["layers"][0]["top"][2]) == {"id", "piece", "logprob"}
    assert made["report"] == str(page)
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ((), 2, "give the text by either -p TEXT"),
        (("-p", "a", "--top", "0"), 2, "--top"),
        (("-p", "a", "--top", "999999"), 1, "top: expected 1 to"),
        (("-p", "a", "--out", "no/such/folder/x.html"), 1, "--out: cannot write"),
        (("-p", "a", "--out", "."), 1, "--out: cannot write"),
        (("-f", "no-such-file"), 1, "cannot read no-such-file"),
    ],
)
def test_what_is_refused(args: tuple[str, ...], code: int, message: str, lens: Run) -> None:
    result = lens(*args)
    assert result.exit_code == code
    assert message in result.output
