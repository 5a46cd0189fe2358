"""How the program ends and starts: one line, the right code, no traceback, quick help."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from m40llm import __version__
from m40llm.cli.app import VERBS
from m40llm.errors import DeviceError
from m40llm.llm.service import Service
from m40llm.server import run as run_server
from m40llm.sm52 import report
from m40llm.sm52.code import Code
from m40llm.testing import write_tiny_gguf
from m40llm.testing.scripted import ScriptedService

Run = Callable[..., Any]
MAIN = [sys.executable, "-m", "m40llm"]
HELP_S = 0.5  # issue 2, item 1


def failing(error: BaseException) -> Callable[..., Any]:
    def load(*args: object, **kwargs: object) -> None:
        raise error

    return load


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (DeviceError("no such card"), 1, "error: no such card\n"),
        (
            ZeroDivisionError("oh"),
            1,
            "internal error: ZeroDivisionError: oh (run again with --debug for the traceback)\n",
        ),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_failures_are_one_line(
    run: Run,
    fake_llm: Any,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    line: str,
) -> None:
    monkeypatch.setattr(fake_llm, "load", failing(error))
    result = run("generate", "model", "-p", "a")
    assert (result.exit_code, result.stderr, result.stdout) == (code, line, "")


def test_failure_as_json_and_with_traceback(
    run: Run, fake_llm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_llm, "load", failing(DeviceError("no such card")))
    result = run("generate", "model", "-p", "a", "--json", "--debug")
    assert result.exit_code == 1
    told = {"error": {"type": "DeviceError", "message": "no such card"}}
    assert json.loads(result.stdout) == told
    assert "Traceback" in result.stderr
    assert result.stderr.endswith("error: no such card\n")


def test_interrupt_midway_ends_the_line(run: Run, fake_llm: Any, tiny_model: str) -> None:
    def interrupt(piece: str) -> None:
        if piece == " b":
            raise KeyboardInterrupt

    fake_llm.on_piece = staticmethod(interrupt)
    result = run("generate", tiny_model, "-p", "hello")
    assert result.exit_code == 130
    assert result.stdout == "a\n"


def test_version_and_help(run: Run) -> None:
    assert run("--version").stdout == f"m40llm {__version__}\n"
    shown = run("--help").stdout
    for verb in VERBS:
        assert f"  {verb.__name__} " in shown
        taught = run(verb.__name__, "--help").stdout
        assert taught.count(f"m40llm {verb.__name__}") >= 2, "two examples at least"
        assert "--json" in taught
        assert "--debug" in taught


def test_help_is_quick() -> None:
    """Processor time of the whole process: on an idle machine that is its wall time."""
    seconds = []
    for _ in range(5):
        before = os.times()
        subprocess.run([*MAIN, "--help"], check=True, stdout=subprocess.DEVNULL)
        after = os.times()
        spent = after.children_user - before.children_user
        seconds.append(spent + after.children_system - before.children_system)
    assert min(seconds) < HELP_S


def test_help_loads_nothing_heavy() -> None:
    heavy = "{'numpy', 'numba', 'rich', 'tokenizers', 'huggingface_hub'}"
    code = f"import sys, m40llm.cli.app; print({heavy} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert result.stdout.strip() == b"set()"


def test_ctrl_c_ends_generate_in_one_line(tmp_path: Path) -> None:
    model = write_tiny_gguf(tmp_path / "long.gguf", context_length=100_000)
    command = [*MAIN, "generate", str(model), "-p", "hello", "--ignore-eos", "--device", "cpu"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as process:  # type: ignore[call-overload]
        process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
        assert process.returncode == 130
    lines = [line for line in told.splitlines() if not line.endswith(b"...")]  # of progress
    assert [line.split(b":")[0] for line in lines] == [b"device", b"interrupted"]


def test_broken_pipe_is_quiet(tiny_model: str) -> None:
    text = "hello " * 20_000  # more than a pipe holds
    command = [*MAIN, "tokenize", tiny_model, "-p", "-"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as process:  # type: ignore[call-overload]
        process.stdin.write(text.encode())
        process.stdin.close()
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


def test_full_disk_is_no_bug_of_ours(tiny_model: str) -> None:
    with open("/dev/full", "wb") as full:
        command = [*MAIN, "info", tiny_model]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
    assert result.returncode == 1
    assert result.stderr == b"error: output: No space left on device\n"


def test_output_that_is_not_utf8(tiny_model: str) -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    command = [*MAIN, "tokenize", tiny_model, "-p", "héllo"]
    result = subprocess.run(command, capture_output=True, env=environment, check=True)
    assert b"?" in result.stdout


def test_docs_name_every_verb_and_key(
    run: Run, fake_llm: Any, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = staticmethod(lambda path, **how: ScriptedService(Path(path)))
    monkeypatch.setattr(Service, "load", load)
    monkeypatch.setattr(run_server, "run", lambda service, settings, at, ready: ready())
    monkeypatch.setattr(report, "code_of", lambda *args: Code(64, 0, 1024, None))
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    text = ["-p", "hello there"]
    calls: dict[str, list[list[str]]] = {
        "generate": [[tiny_model, *text]],
        "chat": [[tiny_model]],
        "serve": [[tiny_model, "--port", "0"]],
        "info": [[tiny_model]],
        "tokenize": [[tiny_model, *text]],
        "perplexity": [[tiny_model, *text, "--per-token", "--against", tiny_model]],
        "logits": [[tiny_model, *text]],
        "lens": [[tiny_model, *text]],
        "pull": [["--list"]],
        "embed": [[tiny_model, *text]],
        "quantize": [[tiny_model, str(tmp_path / "q8_0.gguf"), "--type", "q8_0"]],
        "fuzz": [["--kernel", "cast", "--examples", "2", "--seed", "0"], ["--list"]],
        "sm52": [["--model", tiny_model]],
        "doctor": [[]],
    }
    assert set(calls) == {verb.__name__ for verb in VERBS}
    for verb, runs in calls.items():
        section = page.split(f"\n## {verb}", 1)[1].split("\n## ")[0]
        for args in runs:
            result = run(verb, *args, "--json", input="hello\n")
            assert result.exit_code == 0, result.output
            for key in json.loads(result.stdout):
                assert f"`{key}`" in section, f"docs/cli.md, {verb}: the key {key}"
