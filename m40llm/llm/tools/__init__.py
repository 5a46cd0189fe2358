"""Tool calls in a model's own format: what it is told, what it may say, what it has said."""

from m40llm.llm.results import ToolCall
from m40llm.llm.tools.events import CallArguments, CallBegin, Text, ToolEvent, gathered
from m40llm.llm.tools.formats import ToolFormat, tool_format, tools_of
from m40llm.llm.tools.parser import ToolParser

__all__ = [
    "CallArguments",
    "CallBegin",
    "Text",
    "ToolCall",
    "ToolEvent",
    "ToolFormat",
    "ToolParser",
    "gathered",
    "tool_format",
    "tools_of",
]
