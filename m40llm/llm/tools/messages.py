"""Messages with tool calls, from OpenAI's form to that which a chat template reads."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from m40llm.errors import RequestError
from m40llm.llm.tools.definitions import Tool, checked_list
from m40llm.llm.tools.layouts import Layout

# Phi-4-mini's template has the tools in the system message, as text.
_TOLD_TOOLS: Final = re.compile(r"message(\['tools'\]|\[\"tools\"\]|\.tools\b)")
_SHORT_ID: Final = re.compile(r"[a-zA-Z0-9]{9}")
Messages = Sequence[Mapping[str, Any]]


def tool_variables(template: str, tools: Sequence[Tool]) -> dict[str, Any]:
    """What the template is given beside the messages."""
    functions = [tool.function for tool in tools]
    listed = [{"type": "function", "function": function} for function in functions]
    found = {name: listed for name in ("tools", "custom_tools") if _reads(template, name)}
    # SmolLM3's own variable, for which its model card lists bare functions, and Granite 3.3's.
    found |= {n: functions for n in ("xml_tools", "available_tools") if _reads(template, n)}
    return found if tools else {}


def readable_messages(
    template: str, layout: Layout, messages: Messages, tools: Sequence[Tool]
) -> list[dict[str, Any]]:
    """The messages as the template reads them. RequestError names what is wrong where."""
    from m40llm.text.chat_template import check_messages  # Jinja loads with the first chat

    check_messages(messages)
    names: dict[str, str] = {}  # of calls, by id
    readable: list[dict[str, Any]] = []
    for n, message in enumerate(messages):
        where, message = f"messages[{n}]", dict(message)
        if calls := message.pop("tool_calls", None):
            listed = checked_list(calls, f"{where}.tool_calls")
            read = [_call(call, f"{where}.tool_calls[{k}]") for k, call in enumerate(listed)]
            names |= {call["id"]: call["function"]["name"] for call in read}
            message = _with_calls(message, read, where, template, layout)
        if message["role"] == "tool":
            message = _answer(message, names, where, template, layout)
        readable.append(message)
    if tools and _TOLD_TOOLS.search(template):
        return _with_tools_told(readable, tools)
    return readable


def _reads(template: str, name: str) -> bool:
    return re.search(rf"(?<![\w.'\"]){name}\b", template) is not None


def _call(call: Any, where: str) -> dict[str, Any]:
    """One of an earlier answer's calls, its arguments as an object."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        raise RequestError(f"{where}: expected an object with a function, got {call!r}")
    call_id, name = call.get("id"), function.get("name")
    for value, key in ((call_id, "id"), (name, "function.name")):
        if not isinstance(value, str) or not value:
            raise RequestError(f"{where}.{key}: expected a text, got {value!r}")
    arguments = function.get("arguments", "")
    try:
        read = json.loads(arguments or "{}") if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError):
        read = None
    if not isinstance(read, Mapping):
        raise RequestError(
            f"{where}.function.arguments: expected a JSON object as text, got {arguments!r}"
        )
    return {
        "id": call_id,
        "type": "function",
        "function": {"name": name, "arguments": dict(read)},
    }


def _with_calls(
    message: dict[str, Any],
    calls: Sequence[dict[str, Any]],
    where: str,
    template: str,
    layout: Layout,
) -> dict[str, Any]:
    """As `tool_calls`, or in the text where the template does not read these."""
    content = message.get("content") or ""
    if "tool_calls" in template:
        return {**message, "content": content, "tool_calls": [_short(c, layout) for c in calls]}
    if not isinstance(content, str):
        raise RequestError(f"{where}.content: expected a text, got {type(content).__name__}")
    written = layout.written([(call["function"]["name"], _dumped(call)) for call in calls])
    return {**message, "content": content + written}


def _answer(
    message: dict[str, Any], names: Mapping[str, str], where: str, template: str, layout: Layout
) -> dict[str, Any]:
    """What a tool has answered, with the tool's name."""
    call_id = str(message.get("tool_call_id"))
    if call_id not in names:
        got = message.get("tool_call_id")
        raise RequestError(
            f"{where}.tool_call_id: expected the id of a call in an earlier message, got {got!r}"
        )
    message.setdefault("name", names[call_id])
    if layout.short_ids:
        message["tool_call_id"] = short_id(call_id)
    if "'tool_response'" in template and "'tool'" not in template:  # Granite 3.0's role for it
        message["role"] = "tool_response"
    return message


def _short(call: dict[str, Any], layout: Layout) -> dict[str, Any]:
    return {**call, "id": short_id(call["id"])} if layout.short_ids else call


def short_id(call_id: str) -> str:
    """Nine letters and digits, the same for the same id."""
    if _SHORT_ID.fullmatch(call_id):
        return call_id
    return hashlib.sha256(call_id.encode()).hexdigest()[:9]


def _dumped(call: Mapping[str, Any]) -> str:
    return json.dumps(call["function"]["arguments"], ensure_ascii=False)


def _with_tools_told(messages: list[dict[str, Any]], tools: Sequence[Tool]) -> list[dict[str, Any]]:
    told = json.dumps([tool.function for tool in tools], ensure_ascii=False)
    if not messages or messages[0].get("role") != "system":
        messages = [
            {"role": "system", "content": "You are a helpful assistant with some tools."},
            *messages,
        ]
    return [{**messages[0], "tools": told}, *messages[1:]]
