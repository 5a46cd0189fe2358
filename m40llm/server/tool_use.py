"""ToolUse: what tools, and the choice among them, change about a chat."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from m40llm.llm.tools import ToolFormat, ToolParser, tool_format, tools_of
from m40llm.llm.tools.definitions import read_choice
from m40llm.llm.tools.formats import check_beside
from m40llm.server.chat_schema import ChatRequest
from m40llm.server.fields import need_llguidance
from m40llm.server.serving import Serving


@dataclass(frozen=True)
class ToolUse:
    """Of one request. `fields`: of `SamplingParams`; they hold calls to their tools' schemas, and
    where there is a schema, all else to that one."""

    format: ToolFormat | None  # of the model; None where it knows no tools
    tools: Sequence[Any] | None
    choice: Any
    fields: dict[str, Any] = field(default_factory=dict)
    has_schema: bool = False

    def variables(self, messages: list[dict[str, Any]]) -> dict[str, Any]:
        """What `encode_chat` is to be called with: the messages, and what the template reads."""
        if self.format is None:
            return {"messages": messages}
        return self.format.prompt_variables(self.tools, self.choice, messages)

    def parser(self) -> ToolParser | None:
        """A new one for each answer; None where all it says is text."""
        if self.format is None or not self.tools or self.choice == "none":
            return None
        return self.format.parser(self.tools, self.choice, at_once=self.has_schema)


def tool_use(serving: Serving, asked: ChatRequest, fields: dict[str, Any]) -> ToolUse:
    """RequestError or ApiError for tools that are none, or that the model cannot call.

    fields  of `SamplingParams`, as the request has them
    """
    tools, choice = asked.tools or None, asked.tool_choice
    if tools is None:
        read_choice(choice, ())  # which refuses a choice among none
        return ToolUse(serving.cached(tools_of), None, None)
    own = serving.cached(tool_format)
    parallel = asked.parallel_tool_calls is not False
    schema = fields.get("json_schema")
    constraint = own.constraint(tools, choice, parallel, schema)
    if "lark" in constraint:
        need_llguidance("tool_choice")
        check_beside(fields)
    return ToolUse(own, tools, choice, constraint, has_schema=schema is not None)
