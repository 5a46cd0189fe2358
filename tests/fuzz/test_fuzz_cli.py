"""The verb: what it prints, keeps and refuses, and how it ends."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from m40llm.cli.app import app
from m40llm.fuzz import target_names

TARGETS = """
from m40llm.fuzz import sizes, target

@target(n=sizes(8))
def small(card, n):
    assert n < 5, "too large"

@target(n=sizes(8))
def fine(card, n):
    pass
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of targets; the cache is elsewhere and empty."""
    monkeypatch.setenv("M40LLM_HOME", str(tmp_path / "cache"))
    file = tmp_path / "mine.py"
    file.write_text(TARGETS, encoding="utf-8")
    return file


def run(*args: object) -> Any:
    return CliRunner().invoke(app, ["fuzz", *map(str, args)])


def test_list(mine: Path) -> None:
    assert run("--list").stdout.split() == target_names()


def test_nothing_found(mine: Path) -> None:
    result = run("--kernel", f"{mine}:fine", "--seed", 4)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1].endswith(
        "examples on emulator from --seed 4: 0 kernels failed"
    )
    assert "nothing found" in result.stderr


def test_found(mine: Path) -> None:
    result = run("--kernel", f"{mine}:small", "--kernel", f"{mine}:fine", "--json")
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    small, fine = told["kernels"]
    assert (told["n_found"], fine["failure"]) == (1, None)
    assert small["failure"]["case"] == {"n": 5, "schedule": 0}
    path = Path(small["failure"]["path"])
    assert path.parent == mine.parent / "cache" / "fuzz"
    shown = run("--kernel", f"{mine}:small").stdout
    assert path.read_text(encoding="utf-8") in shown
    assert f"kept as {path}" in shown


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--kernel", "nothing"], 1, "expected FILE.py:NAME or one of add_bias, add_rms_norm"),
        (["--examples", "-1"], 2, "Invalid value for '--examples'"),
        (["--seconds", "-1"], 1, "--seconds: expected more than 0, got -1"),
        (["--device", "cpu"], 2, "expected emulator, cuda or cuda:N"),
        (["--device", "cuda:x"], 2, "expected emulator, cuda or cuda:N, got 'cuda:x'"),
        (["--device", "cuda:-2"], 2, "expected emulator, cuda or cuda:N, got 'cuda:-2'"),
        (["--device", "emulator:1"], 2, "expected emulator, cuda or cuda:N, got 'emulator:1'"),
        (["--keep", "/proc/nowhere"], 1, "--keep: cannot write to /proc/nowhere"),
    ],
)
def test_wrong_requests(mine: Path, args: list[str], code: int, message: str) -> None:
    result = run(*args)
    assert result.exit_code == code
    assert message in result.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raise SystemExit(0)", "cannot be imported: SystemExit: 0"),
        ("def f(:", "cannot be imported: SyntaxError: invalid syntax"),
        (TARGETS.replace("n=sizes(8)", "n=5"), "small: n: expected a strategy such as sizes(64)"),
        (TARGETS.replace("n=sizes(8)", "m=sizes(8)"), "cannot be imported: target small: draws"),
    ],
)
def test_files_that_are_no_targets(mine: Path, text: str, message: str) -> None:
    mine.write_text(text, encoding="utf-8")
    result = run("--kernel", f"{mine}:small")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {mine}: cannot be imported: ")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("missing", "command"),
    [("hypothesis", "pip install 'hypothesis>=6.100'"), ("numba_cuda", "pip install 'numba-cuda")],
)
def test_missing_packages(missing: str, command: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from m40llm.cli import main; "
    code += "sys.argv = ['m40llm', 'fuzz', '--kernel', 'cast']; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: fuzzing: ")
    assert command in done.stderr


def test_ctrl_c(mine: Path) -> None:
    command = [sys.executable, "-m", "m40llm", "fuzz", "--kernel", f"{mine}:fine"]
    slow = TARGETS.replace("    pass", "    import time; print('go', flush=True); time.sleep(0.1)")
    mine.write_text(slow, encoding="utf-8")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=os.environ.copy(), **pipes) as process:  # type: ignore[call-overload]
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        shown, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "0 kernels failed" in shown
    assert told.endswith("interrupted\n")
