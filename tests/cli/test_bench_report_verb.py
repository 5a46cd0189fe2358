"""`m40llm bench report` from the shell: what it writes, refuses, and leaves when it is stopped."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from m40llm.bench import launches
from m40llm.bench.report_file import read_report
from m40llm.bench.report_model import ModelBench
from m40llm.bench.timing import Times
from m40llm.cli.app import app

runner = CliRunner()
DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(autouse=True)
def _in_fixed_time(monkeypatch: pytest.MonkeyPatch) -> None:
    fixed = Times(10.0, 9.0, 12.0, 5)
    monkeypatch.setattr(launches, "time_in_turn", lambda works, *how: [fixed for _ in works])


def reported(out: Path, *more: str) -> Any:
    args = ["bench", "report", "--device", "emulator", "--models", "tiny:F16", "--out", str(out)]
    return runner.invoke(app, [*args, *more])


def test_a_report_and_its_keys(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    done = reported(out, "--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document == read_report(out)
    assert "tiny F16: decode behind 16 tokens in 0.01 ms, 16 launches of 12 kinds" in done.stderr
    section = (DOCS / "cli.md").read_text(encoding="utf-8").split("\n## bench report")[1]
    section = section.split("\n## ")[0]
    named = set(re.findall(r"`(\w+)`", section))
    parts = document["models"][0]
    rows = (document, document["card"], document["software"], document["ceilings"], parts)
    lists = [parts[key][0] for key in ("steps", "launches")]
    for found in (*rows, *lists, parts["prefill"]):
        assert set(found) <= named, f"docs/cli.md, bench report: {set(found) - named}"


def test_what_is_printed(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    done = reported(out)
    assert done.exit_code == 0, done.output
    first, second, third = done.stdout.splitlines()
    assert first.startswith(f"{out}: 1 of the models, 37 kinds of launches, in ")
    assert second == f"beside what is projected: m40llm sm52 --measured {out}"
    assert third == "to send it: docs/measure_your_card.md"


def test_ctrl_c_leaves_a_file_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ModelBench, "prefill", interrupt)
    out = tmp_path / "report.json"
    done = reported(out)
    assert done.exit_code == 130
    assert f"broken off: {out} has what was measured, and says so" in done.stderr
    document = read_report(out)
    assert document["is_complete"] is False
    assert len(document["models"][0]["steps"]) == 2
    assert [found.name for found in tmp_path.iterdir()] == ["report.json"]


def test_ctrl_c_before_anything_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("m40llm.bench.report.Needs", interrupt)
    assert reported(tmp_path / "report.json").exit_code == 130
    assert list(tmp_path.iterdir()) == []


def test_a_failure_is_written_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise ValueError("oh")

    monkeypatch.setattr(ModelBench, "verify", fail)
    out = tmp_path / "report.json"
    done = reported(out)
    assert done.exit_code == 1
    assert f"error: 1 of what was tried failed, which {out} tells: send it" in done.stderr
    [failure] = read_report(out)["failed"]
    assert failure == {"what": "tiny F16, verify", "why": "ValueError: oh"}


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["--models", "1b"], 1, "models: expected SHAPE:TYPE, a type of F32, F16"),
        (["--models", "1b:Q4"], 1, "got '1b:Q4'"),
        (["--models", "7b:F16"], 1, "shape: expected one of tiny, 135m, 1b"),
        (["--models", ""], 1, "models: expected SHAPE:TYPE"),
        (["--models", "tiny:F16,"], 1, "got ''"),
        (["--minutes", "0"], 2, "--minutes"),
        (["--minutes", "nan"], 2, "--minutes"),
        (["--device", "cpu"], 1, "device: expected a CUDA card or the emulator, got 'cpu'"),
        (["--out", "."], 1, "out: . is there already; name another file"),
        (["--out", "no-such-folder/r.json"], 1, "there is no such folder"),
    ],
)
def test_refusals(args: list[str], code: int, words: str, tmp_path: Path) -> None:
    done = reported(tmp_path / "report.json", *args)
    assert done.exit_code == code, done.output
    assert words in done.stderr.replace("--device", "device")
    assert list(tmp_path.iterdir()) == []
