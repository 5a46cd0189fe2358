"""`m40llm sm52 --measured`: a report beside what is projected for its card."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from m40llm.bench.report_file import write_report
from m40llm.cli.app import app
from m40llm.device.gpu.code_digest import code_digest
from m40llm.sm52 import report as projections
from m40llm.sm52.cards import CARDS
from m40llm.sm52.code import Code
from m40llm.testing.fake_report import fake_report

Run = Callable[..., Any]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(projections, "code_of", lambda *args: Code(64, 0, 1024, None))
    monkeypatch.setattr("m40llm.sm52.disassembler.find_disassembler", lambda: Path("nvdisasm"))
    return lambda *args: CliRunner().invoke(app, ["sm52", *args])


def written(tmp_path: Path, name: str = "Tesla M40", **changes: Any) -> str:
    path = tmp_path / "report.json"
    write_report(fake_report(CARDS["m40-24"], name=name) | changes, path)
    return str(path)


def test_json(run: Run, tmp_path: Path) -> None:
    done = run("--measured", written(tmp_path), "--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["card"] == "Tesla M40 24 GB"
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(\w+)`", page.split("\n## sm52")[1].split("\n## ")[0]))
    rows = [document[key][0] for key in ("rates", "kernels", "summary")]
    for found in (document, document["ceilings"], document["measured_on"], *rows):
        assert set(found) <= named, f"docs/cli.md, sm52: {set(found) - named}"


def test_table(run: Run, tmp_path: Path) -> None:
    done = run("--measured", written(tmp_path))
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "Tesla M40, measured, beside what is projected: docs/sm52.md"
    assert lines[1] == "code for sm_52, ECC on, driver 535.1; clock: CUDA events"
    assert lines[2] == (
        "200 GB/s read (162 to 245 by data sheet and model), "
        "6.5 TFLOP/s of FP32 (5.82 to 6.83 by data sheet and model)"
    )
    (own,) = [line for line in lines if " graph " in line]
    assert own.split()[:7] == ["tiny", "Q8_0", "decode", "24", "graph", "2,000", "0.5"]
    (scaled,) = [line for line in lines if "Q8_0 300 x 128" in line and " decode " in line]
    assert scaled.split()[:11] == [
        *("tiny", "Q8_0", "decode", "24", "1", "gemv", "Q8_0", "300", "x", "128", "7")
    ]
    assert scaled.split()[11:] == ["0.673", "to", "5.26", "no", "3.72", "memory"]
    assert lines[-1] == "left out: 8b F16: it needs 16.7 GB, 11.0 GB are free"


@pytest.mark.parametrize("is_same", [True, False])
def test_other_kernels(run: Run, tmp_path: Path, is_same: bool) -> None:
    code = code_digest() if is_same else "0"
    done = run("--measured", written(tmp_path, software={"m40llm": "0.1.0", "code": code}))
    assert ("note: other kernels were measured than these" in done.stderr) != is_same


def test_a_report_that_was_broken_off(run: Run, tmp_path: Path) -> None:
    failed = [{"what": "8b Q4_K", "why": "DeviceError: oh"}]
    done = run("--measured", written(tmp_path, is_complete=False, failed=failed))
    assert done.stdout.splitlines()[0].endswith("docs/sm52.md; the report was broken off")
    assert done.stdout.splitlines()[-1] == "failed: 8b Q4_K: DeviceError: oh"


def test_a_report_of_nothing(run: Run, tmp_path: Path) -> None:
    done = run("--measured", written(tmp_path, models=[]))
    assert done.exit_code == 0, done.output


def test_an_unknown_card(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is compiled, and no disassembler is asked for."""
    monkeypatch.setattr(projections, "code_of", lambda *args: pytest.fail("compiled"))
    monkeypatch.setattr("m40llm.sm52.disassembler.find_disassembler", lambda: pytest.fail("asked"))
    done = run("--measured", written(tmp_path, "Tesla K80"))
    assert done.exit_code == 0, done.output
    assert "note: no data sheet of 'Tesla K80' here (m40-24, m40-12, p40, titan-x," in done.stderr
    assert "there are measurements, but no projections" in done.stderr
    (output,) = [x for x in done.stdout.splitlines() if "300 x 128" in x and " decode " in x]
    assert output.split()[10:] == ["7", "-", "-", "-", "-"]


def test_usage(run: Run, tmp_path: Path) -> None:
    path = written(tmp_path)
    for args, words in (
        (["--measured", path, "--model", "m.gguf"], "expected --model MODEL, or --measured FILE"),
        ([], "expected --model MODEL, or --measured FILE"),
        (["--measured", path, "--card", "p40"], "--card: not beside --measured"),
        (["--measured", path, "--context", "0"], "--context: not beside --measured"),
        (["--measured", path, "--prompt", "9"], "--prompt: not beside --measured"),
        (["--measured", path, "--chart", "x"], "--chart: not beside --measured"),
    ):
        done = run(*args)
        assert done.exit_code == 2, args
        assert words in done.stderr


def test_files_that_are_none(run: Run, tmp_path: Path) -> None:
    for path, words in (
        ("none.json", "error: measured: cannot read none.json: No such file or directory"),
        (str(tmp_path), "Is a directory"),
        (__file__, "is no JSON"),
    ):
        done = run("--measured", path)
        assert done.exit_code == 1
        assert words in done.stderr
        assert "Traceback" not in done.output
