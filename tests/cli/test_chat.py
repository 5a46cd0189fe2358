"""chat: messages through a pipe, the /commands, and Ctrl-C."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from m40llm.cli import chat as chat_module
from m40llm.cli.chat_commands import COMMANDS, QuitChat, SayAgain, run_command
from m40llm.cli.chat_session import Session
from m40llm.engine.sampling_params import SamplingParams
from m40llm.errors import RequestError

Run = Callable[..., Any]


@pytest.fixture
def session(fake_llm: Any, tiny_model: str) -> Session:
    made = Session(fake_llm.load(tiny_model), "tiny", SamplingParams())
    made.answer("one", lambda piece: None)
    made.answer("two", lambda piece: None)
    return made


def contents(session: Session) -> list[str]:
    return [message["content"] for message in session.messages]


def test_piped_messages(run: Run, fake_llm: Any, tiny_model: str) -> None:
    result = run("chat", tiny_model, input="hello\n\n/system Be brief.\nagain\n/quit\nnever\n")
    assert result.exit_code == 0
    assert result.stdout == "you said: hello\nyou said: again\n"
    assert "system message set" in result.stderr


def test_json_has_the_conversation(run: Run, fake_llm: Any, tiny_model: str) -> None:
    result = run("chat", tiny_model, "--system", "Be brief.", "--json", input="hello\n")
    made = json.loads(result.stdout)
    assert [message["role"] for message in made["messages"]] == ["system", "user", "assistant"]
    assert made["messages"][2]["content"] == "you said: hello"
    assert made["turns"][0]["stop_reason"] == "stop"
    assert made["turns"][0]["timings"]["generated_tokens"] == 2


def test_a_failure_in_a_pipe_ends_it(run: Run, fake_llm: Any, tiny_model: str) -> None:
    result = run("chat", tiny_model, input="/nonsense\nhello\n")
    assert result.exit_code == 1
    assert result.stderr.endswith("error: no command /nonsense; /help lists them\n")


def test_undo_regen_reset(session: Session) -> None:
    assert run_command(session, "/undo") == "taken back: two"
    assert contents(session) == ["one", "you said: one"]
    with pytest.raises(SayAgain) as again:
        run_command(session, "/regen")
    assert again.value.text == "one"
    assert contents(session) == []
    for command in ("/undo", "/regen"):
        with pytest.raises(RequestError, match="nothing was said yet"):
            run_command(session, command)


def test_reset_keeps_the_system_message(session: Session) -> None:
    run_command(session, "/system Be brief.")
    assert contents(session)[:2] == ["Be brief.", "one"]
    run_command(session, "/system Be long.")
    run_command(session, "/clear")
    assert contents(session) == ["Be long."]
    assert run_command(session, "/system") == "Be long."
    run_command(session, "/system none")
    assert contents(session) == []


def test_set(session: Session) -> None:
    run_command(session, "/set temperature 0.5")
    run_command(session, "/set seed 7")
    assert (session.params.temperature, session.params.seed) == (0.5, 7)
    for line in ("temp 0.25", "--temp 0.25", "-n 9", "top-p 0.5", "--min-p 0.125"):
        run_command(session, f"/set {line}")
    told = session.params
    assert (told.temperature, told.max_tokens, told.top_p, told.min_p) == (0.25, 9, 0.5, 0.125)
    run_command(session, "/set seed none")
    assert session.params.seed is None
    assert "top_k" in run_command(session, "/set")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("/set colour red", "expected one of temperature"),
        ("/set top_k many", "expected a whole number, got 'many'"),
        ("/set temperature -1", "temperature"),
        ("/load /nowhere/at/all", "cannot read"),
        ("/save /nowhere/at/all", "cannot write"),
        ("/save", "expected a file name"),
        ("/what", "no command /what"),
    ],
)
def test_commands_refuse(session: Session, line: str, told: str) -> None:
    before = contents(session)
    with pytest.raises(RequestError, match=told):
        run_command(session, line)
    assert contents(session) == before


def test_save_and_load(session: Session, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    run_command(session, f"/save {path}")
    before = contents(session)
    session.reset()
    run_command(session, f"/load {path}")
    assert contents(session) == before


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"messages": 1}',
        '{"messages": [1]}',
        '{"messages": [{"role": "user"}]}',
        '{"messages": [{"role": "king", "content": "x"}]}',
    ],
)
def test_load_refuses(session: Session, tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(RequestError):
        run_command(session, f"/load {path}")
    assert len(session.messages) == 4


def test_help_names_every_command_and_stats_the_context(session: Session) -> None:
    shown = run_command(session, "/help")
    assert all(name in shown for name in COMMANDS)
    assert "of 64 tokens" in run_command(session, "/stats")
    with pytest.raises(QuitChat):
        run_command(session, "/quit")


def test_ctrl_c_stops_the_answer_and_keeps_it(session: Session, fake_llm: Any) -> None:
    fake_llm.on_piece = staticmethod(lambda piece: os.kill(os.getpid(), signal.SIGINT))
    written: list[str] = []
    assert session.answer("three", written.append).stop_reason == "cancelled"
    assert written == ["you said: "]
    assert contents(session)[-2:] == ["three", "you said: "]
    assert session.turns[-1]["stop_reason"] == "cancelled"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_failed_answer_leaves_the_conversation_as_it_was(session: Session, fake_llm: Any) -> None:
    def too_long(piece: str) -> None:
        raise RequestError("the conversation is too long")

    fake_llm.on_piece = staticmethod(too_long)
    before = contents(session)
    with pytest.raises(RequestError):
        session.answer("three", lambda piece: None)
    assert contents(session) == before


def test_typed_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    script: list[Any] = ["first", "two \\", "lines", "", KeyboardInterrupt, "more"]
    script += [KeyboardInterrupt, KeyboardInterrupt, "never"]

    def typed(prompt: str) -> str:
        step = script.pop(0)
        if step is KeyboardInterrupt:
            raise KeyboardInterrupt
        return str(step)

    monkeypatch.setattr(chat_module, "_input", typed)
    assert list(chat_module._typed_lines()) == ["first", "two \nlines", "more"]
    assert script == ["never"]
