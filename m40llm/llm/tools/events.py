"""What an answer with tool calls is made of, in the order in which it comes."""

from dataclasses import dataclass


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
