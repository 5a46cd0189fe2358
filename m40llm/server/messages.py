"""The messages of a chat, as OpenAI has them, and as chat templates want them."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from m40llm.server.fields import STRICT, Ignored, Refused


class TextPart(BaseModel):
    """The one kind of content that a model of text can read."""

    model_config = STRICT

    type: Literal["text"]
    text: str


Content = str | Annotated[list[TextPart], Field(min_length=1)]


class FunctionCall(BaseModel):
    model_config = STRICT

    name: str
    arguments: str


class ToolCall(BaseModel):
    model_config = STRICT

    id: str
    type: Literal["function"]
    function: FunctionCall


class SystemMessage(BaseModel):
    model_config = STRICT

    role: Literal["system", "developer"]
    content: Content
    name: Ignored = None


class UserMessage(BaseModel):
    model_config = STRICT

    role: Literal["user"]
    content: Content
    name: Ignored = None


class AssistantMessage(BaseModel):
    model_config = STRICT

    role: Literal["assistant"]
    content: Content | None = None
    tool_calls: list[ToolCall] | None = None
    name: Ignored = None
    refusal: Ignored = None
    annotations: Ignored = None
    audio: Refused = None
    function_call: Refused = None


class ToolMessage(BaseModel):
    model_config = STRICT

    role: Literal["tool"]
    content: Content
    tool_call_id: str


Message = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")
]


def texts_of(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """All that may be long of messages as templates read them."""
    calls = [call for message in messages for call in message.get("tool_calls", ())]
    texts = [message["content"] for message in messages if message["content"]]
    return [*texts, *(str(call) for call in calls)]


def for_template(messages: Sequence[Any]) -> list[dict[str, Any]]:
    """As the templates of model files read them: texts whole, developers as the system.

    Templates want arguments of calls as they want them: tools.py sees to that.
    """
    made = []
    for message in messages:
        role = "system" if message.role == "developer" else message.role
        one: dict[str, Any] = {"role": role, "content": _text(message.content)}
        if message.role == "assistant" and message.tool_calls:
            one["tool_calls"] = [call.model_dump() for call in message.tool_calls]
        if message.role == "tool":
            one["tool_call_id"] = message.tool_call_id
        made.append(one)
    return made


def _text(content: Any) -> str:
    if content is None:
        return ""
    return content if isinstance(content, str) else "\n".join(part.text for part in content)
