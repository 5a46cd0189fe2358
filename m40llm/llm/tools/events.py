"""What an answer with tool calls is made of, in the order in which it comes."""

from collections.abc import Iterable
from dataclasses import dataclass

from m40llm.llm.results import ToolCall


@dataclass(frozen=True)
class Text:
    """Words to the user."""

    text: str


@dataclass(frozen=True)
class CallBegin:
    """The model calls the tool `name`. The first call of an answer has index 0."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class CallArguments:
    """A piece of the arguments of call `index`: all pieces put together are the JSON that the model
    wrote, unless the answer was cut short or went wrong there."""

    index: int
    text: str


ToolEvent = Text | CallBegin | CallArguments


def gathered(events: Iterable[ToolEvent]) -> tuple[str, tuple[ToolCall, ...]]:
    """All events of an answer as its text and its calls."""
    texts, begins, arguments = list[str](), list[CallBegin](), list[str]()
    for event in events:
        if isinstance(event, Text):
            texts.append(event.text)
        elif isinstance(event, CallBegin):
            begins.append(event)
            arguments.append("")
        else:
            arguments[event.index] += event.text
    calls = [ToolCall(b.id, b.name, a) for b, a in zip(begins, arguments, strict=True)]
    return "".join(texts), tuple(calls)
