"""The line of progress at a terminal: seen, gone when done, and never in the way of the answer."""

import io
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from m40llm.cli.app import app
from m40llm.cli.output import progress_bar
from m40llm.progress import BytesDone, Progress
from m40llm.testing import write_tiny_gguf

COMPILING = "compiling GPU kernels for sm_52, once: gemv_q4_0 (12 so far)"
CODE = re.compile(r"\x1b(?:[78]|\[\??\d*[A-Za-z])|.", re.S)


class Terminal(io.StringIO):
    """Knows what of its text a person sees."""

    n_columns = 80

    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        """The lines on the screen now."""
        screen, column, saved, wraps = [""], 0, 0, True
        for code in CODE.findall(self.getvalue()):
            if code == "\x1b7":
                saved = column
            elif code == "\x1b8":
                column = saved
            elif code in ("\x1b[?7l", "\x1b[?7h"):
                wraps = code.endswith("h")
            elif code == "\x1b[K":
                screen[-1] = screen[-1][:column]
            elif code == "\n" or (wraps and column == self.n_columns):
                screen.append(code.strip("\n"))
                column = len(screen[-1])
            else:
                assert code.isprintable()
                at = min(column, self.n_columns - 1)
                screen[-1] = screen[-1][:at].ljust(at) + code + screen[-1][at + 1 :]
                column = at + 1
        return screen


def open_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Standard output and error, both. No fixture: pytest sets them anew before each test."""
    made = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", made)
    monkeypatch.setattr(sys, "stderr", made)
    return made


def test_the_line_is_seen_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)
    with progress_bar() as progress:
        progress("loading weights", 0.5)
        assert terminal.lines() == [f"  loading weights  [{'#' * 15}{' ' * 15}]  50%"]
        progress("loading weights", 1.0)
        assert terminal.lines() == [""]
        progress("download", BytesDone(12_300_000, 98_400_000))
        assert "download 12.3 / 98.4 MB  [###" in terminal.lines()[0]
        progress(COMPILING, 0.0)
        assert terminal.lines() == [f"  {COMPILING}"]
    assert terminal.lines() == [""]


def test_quick_reports_are_drawn_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)
    with progress_bar() as progress:
        for n in range(1, 1000):
            progress("loading weights", n / 1000)
    assert terminal.getvalue().count("loading") < 100


@pytest.mark.parametrize("n_said", [0, 5, 60, 79, 100])
def test_an_answer_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch, n_said: int) -> None:
    """Also where the line has no room: it is cut, since a new line might scroll the screen."""
    terminal = open_terminal(monkeypatch)
    answer = "a" * n_said
    terminal.write(answer)
    with progress_bar() as progress:
        before = terminal.lines()
        progress(COMPILING, 0.0)
        assert terminal.lines() != before
        assert len(terminal.lines()) == len(before)
        progress(COMPILING, 1.0)
        assert terminal.lines() == before
    terminal.write(" b")
    assert "".join(terminal.lines()) == answer + " b"


def test_elsewhere_not_a_word_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    told = io.StringIO()
    monkeypatch.setattr(sys, "stderr", told)
    with progress_bar() as progress:
        progress(COMPILING, 0.0)
        progress(COMPILING, 1.0)
    assert told.getvalue() == ""
    dumb = Terminal()
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys, "stderr", dumb)
    with progress_bar() as progress:
        progress(COMPILING, 0.0)
    assert dumb.getvalue() == ""


@pytest.mark.parametrize("verb", ["generate", "chat", "logits", "perplexity"])
def test_every_verb_shows_what_a_request_compiles(
    fake_llm: Any, tiny_model: str, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """The device compiles in the midst of it, as a GPU does at each first launch."""
    terminal = open_terminal(monkeypatch)
    seen: list[str] = []

    def compiling(of: Callable[..., Any]) -> Callable[..., Any]:
        def compile_first(self: Any, *args: Any, **options: Any) -> Any:
            told_by_load(COMPILING, 0.0)
            seen.append(terminal.lines()[-1])
            told_by_load(COMPILING, 1.0)
            return of(self, *args, **options)

        return compile_first

    def told_by_load(stage: str, fraction: float) -> None:
        loads[-1](stage, fraction)

    def load(model: str, *, progress: Progress, **options: Any) -> Any:
        loads.append(progress)
        return fake_load(model, **options)

    loads: list[Progress] = []
    fake_load = fake_llm.load
    monkeypatch.setattr(fake_llm, "load", load)
    for name in ("stream", "chat", "logits"):
        monkeypatch.setattr(fake_llm, name, compiling(getattr(fake_llm, name)))
    text = [] if verb == "chat" else ["-p", "hello there"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hello\n")))
    app([verb, tiny_model, *text], standalone_mode=False)
    assert seen
    assert all(line.endswith(COMPILING) for line in seen)
    assert "compiling" not in "\n".join(terminal.lines())


def test_ctrl_c_while_compiling(tmp_path: Path) -> None:
    model = write_tiny_gguf(tmp_path / "tiny.gguf", head_dim=64)
    command = [sys.executable, "-m", "m40llm", "generate", str(model), "-p", "hello"]
    environment = os.environ | {"M40LLM_HOME": str(tmp_path / "cache"), "TERM": "xterm"}
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*command, "--device", "emulator"], stdout=subprocess.PIPE, stderr=theirs, env=environment
    ) as process:
        os.close(theirs)
        told = b""
        while b"once: " not in told:
            told += os.read(ours, 1000)
        process.send_signal(signal.SIGINT)
        stdout, _ = process.communicate(timeout=60)
        told += os.read(ours, 100_000)
    os.close(ours)
    assert (process.returncode, stdout) == (130, b"")
    screen = Terminal(told.decode().replace("\r\n", "\n"), newline="\n").lines()
    assert [line.split(":")[0] for line in screen] == ["device", "interrupted", ""]
