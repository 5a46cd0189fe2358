"""The /commands of `m40llm chat`: each a function of the session and the rest of its line."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

from m40llm.cli.chat_session import Session, check_messages
from m40llm.cli.output import table
from m40llm.cli.sampling_keys import KEYS, parsed
from m40llm.errors import RequestError


class QuitChat(Exception):  # noqa: N818 - not an error
    """The user said /quit."""


class SayAgain(Exception):  # noqa: N818 - not an error
    """The user wants `text` answered (again)."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


def show_help(session: Session, argument: str) -> str:
    """Show this list"""
    rows = [(name, command.__doc__ or "") for name, command in COMMANDS.items()]
    keys = "Ctrl-C stops an answer, twice at the prompt leaves; \\ at a line's end goes on."
    return f"{table(rows)}\n{keys}"


def reset(session: Session, argument: str) -> str:
    """Forget the conversation, keep the system message"""
    session.reset()
    return "forgotten"


def system(session: Session, argument: str) -> str:
    """/system TEXT sets the system message, /system alone shows it, /system none removes it"""
    if not argument:
        return session.system or "no system message (the model's template may add its own)"
    session.set_system("" if argument == "none" else argument)
    return "system message set" if argument != "none" else "system message removed"


def regen(session: Session, argument: str) -> str:
    """Answer the last message again"""
    text = session.undo()
    if text is None:
        raise RequestError("/regen: nothing was said yet")
    raise SayAgain(text)


def undo(session: Session, argument: str) -> str:
    """Take back the last message and its answer"""
    text = session.undo()
    if text is None:
        raise RequestError("/undo: nothing was said yet")
    return f"taken back: {text}"


def set_param(session: Session, argument: str) -> str:
    """/set KEY VALUE changes a sampling parameter, /set alone shows them"""
    if not argument:
        return table((name, _shown(getattr(session.params, name))) for name in KEYS)
    given, _, value = argument.partition(" ")
    key, number = parsed(given, value.strip())
    session.params = dataclasses.replace(session.params, **{key: number})
    return f"{key} = {_shown(number)}"


def _shown(value: object) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(value)


def stats(session: Session, argument: str) -> str:
    """Show how long the conversation is and how fast the answers were"""
    timings = [turn["timings"] for turn in session.turns]
    n_tokens = sum(timing["generated_tokens"] for timing in timings)
    decode_s = sum(timing["decode_s"] for timing in timings)
    rows = [
        ("answers", str(len(session.turns))),
        ("tokens generated", str(n_tokens)),
        ("tokens/s", f"{(n_tokens - len(timings)) / decode_s:.1f}" if decode_s else "-"),
        ("context", f"{session.n_context} of {session.llm.max_seq_len} tokens"),
        ("device", f"{session.llm.device_name} ({session.llm.device_reason})"),
    ]
    return table(rows)


def save(session: Session, argument: str) -> str:
    """/save FILE writes the conversation as JSON"""
    path = _path("/save", argument)
    document = {"model": session.model, "messages": session.messages}
    try:
        path.write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise RequestError(f"/save: cannot write {path}: {error.strerror}") from error
    return f"saved {len(session.messages)} messages to {path}"


def load(session: Session, argument: str) -> str:
    """/load FILE goes on with a saved conversation"""
    path = _path("/load", argument)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"/load: cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise RequestError(f"/load: {path} is not JSON: {error}") from error
    messages = document.get("messages") if isinstance(document, dict) else None
    session.messages = check_messages(messages)
    return f"loaded {len(session.messages)} messages"


def _path(command: str, argument: str) -> Path:
    if not argument:
        raise RequestError(f"{command}: expected a file name")
    return Path(argument).expanduser()


def leave(session: Session, argument: str) -> str:
    """Leave (as do Ctrl-D, and Ctrl-C twice)"""
    raise QuitChat


COMMANDS: dict[str, Callable[[Session, str], str]] = {
    "/help": show_help,
    "/reset": reset,
    "/clear": reset,
    "/system": system,
    "/regen": regen,
    "/undo": undo,
    "/set": set_param,
    "/stats": stats,
    "/save": save,
    "/load": load,
    "/quit": leave,
    "/exit": leave,
}


def run_command(session: Session, line: str) -> str:
    """Run a line that begins with "/" and return what to show.

    Raises:
        RequestError: no such command, or a wrong argument.
        QuitChat, SayAgain: what /quit and /regen ask of the loop.
    """
    name, _, argument = line.partition(" ")
    if name not in COMMANDS:
        raise RequestError(f"no command {name}; /help lists them")
    return COMMANDS[name](session, argument.strip())
