"""Reading the text that a verb works on: from -p TEXT, from stdin (-p -) or from -f FILE."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand

from m40llm.errors import RequestError

if TYPE_CHECKING:
    from m40llm.text import Tokenizer


class TextCommand(TyperCommand):
    """A verb with -p: who says the text without it is told where it belongs."""

    allow_extra_args = True

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        rest = super().parse_args(ctx, args)
        if rest and not ctx.resilient_parsing:
            ctx.fail(f"unexpected {rest[0]!r}: a text needs -p, a file of it -f")
        return rest


def read_text(prompt: str | None, file: str | None) -> str:
    """The text that -p or -f names; exactly one of them must be given.

    Raises:
        typer.BadParameter: none or both were given, or -p is not UTF-8.
        RequestError: the file or stdin cannot be read, or is not UTF-8.
    """
    if (prompt is None) == (file is None):
        raise typer.BadParameter("give the text by either -p TEXT (- reads stdin) or -f FILE")
    if prompt == "-":
        return _decoded(sys.stdin.buffer.read(), "stdin")
    if prompt is not None:
        # Python hides bytes of an argument that are not UTF-8 behind lone surrogates.
        if any("\ud800" <= char <= "\udfff" for char in prompt):
            raise typer.BadParameter("-p: the text is not valid UTF-8")
        return prompt
    assert file is not None
    return _text_of("-f", file)


def prompt_ids(tokenizer: "Tokenizer", text: str) -> list[int]:
    """The text's tokens. RequestError where there are none."""
    ids = tokenizer.encode(text)
    if not ids:
        raise RequestError("-p: the text is empty and the model puts no token before it")
    return ids


def read_option(flag: str, file: str | None) -> str | None:
    """The text of a file that an option names. RequestError where it cannot be read."""
    return None if file is None else _text_of(flag, file)


def _text_of(flag: str, file: str) -> str:
    try:
        return _decoded(Path(file).read_bytes(), file)
    except OSError as error:
        raise RequestError(f"{flag}: cannot read {file}: {error.strerror}") from error


def _decoded(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"{where}: not UTF-8 text, at byte {error.start}") from error
