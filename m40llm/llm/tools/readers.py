"""What may stand behind an opening mark, read a character at a time.

A reader is a generator that is sent the characters and ends with the last one of the calls. It
tells a sink what it finds as it finds it, and raises NoCallError at the character that shows that
there is no call.
"""

from collections.abc import Callable, Generator
from typing import Final, Protocol

from m40llm.llm.tools.json_text import JsonFollower

SPACE: Final = " \t\n\r"
_ARGUMENTS: Final = ("arguments", "parameters")
_IGNORED: Final = ("id", "type")  # beside name and arguments: the parser gives its own ids
_MAX_WORD: Final = 256  # characters of a name, key or id

Reading = Generator[None, str, None]  # takes a character at each step; ends where the calls do
Word = Generator[None, str, str]


class NoCallError(Exception):
    """The character that was read last cannot stand there."""


class CallSink(Protocol):
    """What readers tell of the calls they find."""

    def check(self, name: str) -> None:
        """NoCallError where there is no such tool."""
        ...

    def begin(self, name: str) -> None: ...
    def arguments(self, text: str) -> None: ...
    def end(self) -> None:
        """The call is whole, and what was read so far is used."""
        ...


def read_json_calls(sink: CallSink) -> Reading:
    """{"name": ..., "arguments": {...}}, or a list of these."""
    char = yield from _visible()
    if char != "[":
        yield from _read_call(sink, char)
        return
    while char != "]":
        yield from _read_call(sink, (yield from _visible()))
        char = yield from _visible()
        if char not in ",]":
            raise NoCallError


def read_marked_call(sink: CallSink) -> Reading:
    """NAME[ARGS]{...}, as Mistral's models of 2025 write it; some [CALL_ID]ID before [ARGS]."""
    head = ""
    while not head.endswith("[ARGS]"):
        head += yield
        if len(head) > _MAX_WORD:
            raise NoCallError
    name, _, _ = head.removesuffix("[ARGS]").partition("[CALL_ID]")
    sink.check(name.strip())
    char = yield from _visible()
    if char != "{":
        raise NoCallError
    sink.begin(name.strip())
    yield from _read_value(char, sink.arguments)
    sink.end()


def _read_call(sink: CallSink, char: str) -> Reading:
    name, early = "", ""  # arguments that came before the name
    has_arguments = False
    if char != "{":
        raise NoCallError
    while char != "}":
        key = yield from _word((yield from _visible()))
        if (yield from _visible()) != ":":
            raise NoCallError
        char = yield from _visible()
        if key == "name" and not name:
            name = yield from _word(char)
            sink.check(name)
            if has_arguments:
                sink.begin(name)
                sink.arguments(early)
        elif key in _ARGUMENTS and char == "{" and not has_arguments:
            held: list[str] = []
            if name:
                sink.begin(name)
            yield from _read_value(char, sink.arguments if name else held.append)
            has_arguments, early = True, "".join(held)
        elif key in _IGNORED:
            yield from _word(char)
        else:
            raise NoCallError
        char = yield from _visible()
        if char not in ",}":
            raise NoCallError
    if not name or not has_arguments:
        raise NoCallError
    sink.end()


def _read_value(char: str, heard: Callable[[str], None]) -> Reading:
    """An object or list whose first character is at hand; `heard` is told every character."""
    follower = JsonFollower()
    is_fit = follower.take(char)
    while is_fit:
        heard(char)
        if follower.is_whole:
            return
        is_fit = follower.take(char := (yield))
    raise NoCallError


def _word(char: str) -> Word:
    """A JSON string without escapes: names, keys and ids have none."""
    word = ""
    if char != '"':
        raise NoCallError
    while (char := (yield)) != '"':
        word += char
        if char == "\\" or char < " " or len(word) > _MAX_WORD:
            raise NoCallError
    return word


def _visible() -> Word:
    while (char := (yield)) in SPACE:
        pass
    return char
