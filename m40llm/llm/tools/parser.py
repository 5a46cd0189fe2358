"""ToolParser: tells calls from words in an answer while it comes.

Nothing is lost: what turns out to be no call comes as the text that it is. Text is held back only
where it could begin a call.
"""

from collections.abc import Callable, Container, Mapping

from m40llm.llm.stream import StopStrings
from m40llm.llm.tools.events import CallArguments, CallBegin, Text, ToolEvent
from m40llm.llm.tools.layouts import Layout
from m40llm.llm.tools.readers import SPACE, NoCallError, Reading


class ToolParser:
    """`push` every token of an answer as it comes, then `finish`; both return what is certain."""

    def __init__(
        self,
        layout: Layout,
        marks: Mapping[int, str],
        names: Container[str] | None,
        new_id: Callable[[], str],
        *,
        at_once: bool = False,
    ) -> None:
        """
        marks    texts of the control tokens that are marks of the layout: no text comes with them
        names    of the tools; None: a call may have any name
        at_once  an answer that does not begin with a call has none
        """
        self._layout, self._marks, self._names, self._new_id = layout, marks, names, new_id
        self._events: list[ToolEvent] = []
        self._n_calls = 0
        self._is_open = False  # a call has begun
        self._stops = StopStrings(layout.opens)
        self._first = frozenset(mark[0] for mark in layout.opens)
        # What has come and is not used yet: the text's end, which could begin a call, or what has
        # been read of one; of which _n_mark characters opened it.
        self._held, self._n_mark = "", 0
        self._reading: Reading | None = None
        # Where what is no call goes, and where the next character does.
        self._words: Callable[[str], None] = self._say if at_once else self._in_text
        may_begin = layout.is_bare or at_once
        self._take: Callable[[str], None] = self._between if may_begin else self._in_text

    def push(self, text: str, token_id: int) -> list[ToolEvent]:
        """Of one token: the text that came with it, and its id."""
        text += self._marks.get(token_id, "")
        if self._take == self._in_text and not self._held and self._first.isdisjoint(text):
            return [Text(text)] if text else []  # the common case, at once
        if self._take == self._say:
            return [Text(text)] if text else []
        for char in text:
            self._take(char)
        return self._told()

    def finish(self) -> list[ToolEvent]:
        """Once no more tokens come. A call that has begun may lack the end of its arguments."""
        is_gap = self._take == self._between and self._n_calls and not self._held.strip(SPACE)
        if not self._is_open and not is_gap:
            self._say(self._held)
        self._held = ""
        return self._told()

    # What readers tell: CallSink.

    def check(self, name: str) -> None:
        if not name or (self._names is not None and name not in self._names):
            raise NoCallError

    def begin(self, name: str) -> None:
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
        layout = self._layout
        self._held += char
        seen = self._held.lstrip(SPACE)
        if seen in layout.opens:
            self._open()
        elif seen == "{" and layout.is_bare:
            self._open()
            self._in_call(char, is_held=True)
        elif seen in layout.closes and self._n_calls:
            self._used()
        elif seen and not any(mark.startswith(seen) for mark in (*layout.opens, *layout.closes)):
            self._as_text()

    def _in_call(self, char: str, is_held: bool = False) -> None:
        self._held += "" if is_held else char
        assert self._reading is not None  # _open has made it
        try:
            self._reading.send(char)
        except StopIteration:
            self._take = self._between
            self._used()
        except NoCallError:
            self._n_calls += self._is_open
            self._is_open = False
            self._as_text()

    def _open(self) -> None:
        self._n_mark = len(self._held)
        self._reading = self._layout.read(self)
        next(self._reading)
        self._take = self._in_call

    def _as_text(self) -> None:
        """What is held is no call; another may begin within it, behind what opened this one."""
        held, n_mark, self._take = self._held, self._n_mark, self._words
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
