"""ToolParser: tells calls from words in an answer while it comes.

Nothing is lost: what turns out to be no call comes as the text that it is. Text is held back only
where it could begin a call.
"""

from collections.abc import Callable, Container, Generator, Mapping, Sequence
from typing import Final, Protocol

from m40llm.llm.stream import StopStrings
from m40llm.llm.tools.events import CallArguments, CallBegin, Text, ToolEvent
from m40llm.llm.tools.json_text import JsonFollower

_SPACE: Final = " \t\n\r"
_ARGUMENTS: Final = ("arguments", "parameters")
_IGNORED: Final = ("id", "type")  # beside name and arguments: the parser gives its own ids
_MAX_WORD: Final = 256  # characters of a name, key or id

Reading = Generator[None, str, None]  # takes a character at each step; ends where the calls do
Word = Generator[None, str, str]


class NoCallError(Exception):
    """The character that was read last cannot stand there."""


class CallSink(Protocol):
    """What readers tell of the calls they find."""

    def begin(self, name: str) -> None:
        """NoCallError where there is no such tool."""
        ...

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
    sink.begin(name.strip())
    yield from _read_value((yield from _visible()), "{", sink.arguments)
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
            sink.begin(name)
            sink.arguments(early)
        elif key in _ARGUMENTS and not has_arguments:
            held: list[str] = []
            yield from _read_value(char, "{", sink.arguments if name else held.append)
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


def _read_value(char: str, first: str, heard: Callable[[str], None]) -> Reading:
    """A JSON value whose first character is at hand; `heard` is told every character of it."""
    follower = JsonFollower()
    if char not in first or not follower.take(char):
        raise NoCallError
    heard(char)
    while not follower.is_whole:
        if not follower.take(char := (yield)):
            raise NoCallError
        heard(char)


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
    while (char := (yield)) in _SPACE:
        pass
    return char


class ToolParser:
    """`push` every token of an answer as it comes, then `finish`; both return what is certain."""

    def __init__(
        self,
        opens: Sequence[str],
        closes: Sequence[str],
        begins_bare: bool,
        marks: Mapping[int, str],
        read: Callable[[CallSink], Reading],
        names: Container[str] | None,
        new_id: Callable[[], str],
    ) -> None:
        """
        opens, closes   what stands before calls, and what may stand behind
        begins_bare     whether { may begin a call without anything before it, where an answer
                        begins or another call has ended
        marks           texts of the control tokens that matter: no text comes with them
        read            reads calls once they have been opened
        names           of the tools; None: any name is a call
        """
        self._opens, self._closes, self._begins_bare = opens, closes, begins_bare
        self._marks, self._read, self._names, self._new_id = marks, read, names, new_id
        self._events: list[ToolEvent] = []
        self._n_calls = 0
        self._is_open = False  # a call has begun
        self._stops = StopStrings(opens)
        # What has come and is not used yet: the text's end, which could begin a call, or what has
        # been read of one; of which _n_mark characters opened it.
        self._held, self._n_mark = "", 0
        self._reading: Reading | None = None
        self._take = self._between if begins_bare else self._in_text

    def push(self, text: str, token_id: int) -> list[ToolEvent]:
        """Of one token: the text that came with it, and its id."""
        for char in text + self._marks.get(token_id, ""):
            self._take(char)
        return self._told()

    def finish(self) -> list[ToolEvent]:
        """Once no more tokens come. A call that has begun may lack the end of its arguments."""
        is_gap = self._take == self._between and self._n_calls and not self._held.strip(_SPACE)
        if not self._is_open and not is_gap:
            self._say(self._held)
        self._held = ""
        return self._told()

    # What readers tell: CallSink.

    def begin(self, name: str) -> None:
        if self._names is not None and name not in self._names:
            raise NoCallError
        self._is_open = True
        self._events.append(CallBegin(self._n_calls, self._new_id(), name))
        self._used()

    def arguments(self, text: str) -> None:
        last = self._events[-1] if self._events else None
        if isinstance(last, CallArguments):
            self._events[-1] = CallArguments(last.index, last.text + text)
        elif text:
            self._events.append(CallArguments(self._n_calls, text))
        self._used()

    def end(self) -> None:
        self._n_calls += 1
        self._is_open = False
        self._used()

    # Where the next character goes.

    def _in_text(self, char: str) -> None:
        self._held += char
        certain, found = self._stops.push(char)
        self._say(certain)
        self._held = self._held[len(certain) :]
        if found:
            self._open()

    def _between(self, char: str) -> None:
        """Before the first visible character, or behind a call."""
        self._held += char
        seen = self._held.lstrip(_SPACE)
        if seen in self._opens:
            self._open()
        elif seen == "{" and self._begins_bare:
            self._open()
            self._in_call(char, is_held=True)
        elif seen in self._closes and self._n_calls:
            self._used()
        elif seen and not any(mark.startswith(seen) for mark in (*self._opens, *self._closes)):
            self._as_text()

    def _in_call(self, char: str, is_held: bool = False) -> None:
        self._held += "" if is_held else char
        assert self._reading is not None  # _open has made it
        try:
            self._reading.send(char)
        except StopIteration:
            self._take = self._between
        except NoCallError:
            self._n_calls += self._is_open
            self._is_open = False
            self._as_text()

    def _open(self) -> None:
        self._n_mark = len(self._held)
        self._reading = self._read(self)
        next(self._reading)
        self._take = self._in_call

    def _as_text(self) -> None:
        """What is held is no call; another may begin within it, behind what opened this one."""
        held, n_mark, self._take = self._held, self._n_mark, self._in_text
        self._used()
        self._say(held[:n_mark])
        for char in held[n_mark:]:
            self._take(char)

    def _used(self) -> None:
        self._held, self._n_mark = "", 0

    def _say(self, text: str) -> None:
        last = self._events[-1] if self._events else None
        if isinstance(last, Text):
            self._events[-1] = Text(last.text + text)
        elif text:
            self._events.append(Text(text))

    def _told(self) -> list[ToolEvent]:
        told, self._events = self._events, []
        return told
