"""Tools and the choice among them as OpenAI's API describes them, checked.

https://platform.openai.com/docs/api-reference/chat/create: `tools` and `tool_choice`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from m40llm.errors import RequestError

_NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_FUNCTION_KEYS: Final = {"name", "description", "parameters", "strict"}
_MODES: Final = ("none", "auto", "required")


@dataclass(frozen=True)
class Tool:
    """A function that the model may ask the caller to call.

    parameters   JSON schema of its arguments, an object's
    strict       whether arguments must be of the schema, or nothing is said; otherwise what cannot
                 be enforced of the schema is left to the model
    """

    name: str
    description: str | None
    parameters: Mapping[str, Any]
    strict: bool

    @property
    def function(self) -> dict[str, Any]:
        """As templates show it to the model."""
        said = {} if self.description is None else {"description": self.description}
        return {"name": self.name, **said, "parameters": dict(self.parameters)}


@dataclass(frozen=True)
class Choice:
    """mode: "none" (no call), "auto" (the model's choice), "required" (one at least), of tools."""

    mode: Literal["none", "auto", "required"]
    tools: tuple[Tool, ...]  # those that may be called


def read_tools(tools: Any) -> tuple[Tool, ...]:
    """OpenAI's `tools`; None is none. RequestError names what is wrong where."""
    if tools is None:
        return ()
    listed = [_tool(tool, f"tools[{n}]") for n, tool in enumerate(checked_list(tools, "tools"))]
    for n, tool in enumerate(listed):
        if tool.name in [earlier.name for earlier in listed[:n]]:
            raise RequestError(f"tools[{n}].function.name: {tool.name!r} is there twice")
    return tuple(listed)


def read_choice(choice: Any, tools: Sequence[Tool]) -> Choice:
    """OpenAI's `tool_choice`: a mode, a named function, or allowed tools; None is "auto" where
    there are tools, else "none"."""
    if choice is None:
        return Choice("auto" if tools else "none", tuple(tools))
    if choice == "none":
        return Choice("none", tuple(tools))
    if not tools:
        raise RequestError(f"tool_choice: expected tools beside it, got none, and {choice!r}")
    if isinstance(choice, str):
        return Choice(_mode(choice, "tool_choice", _MODES), tuple(tools))
    where = "tool_choice"
    kind = _field(choice, "type", where)
    if kind == "function":
        _check_keys(choice, {"type", "function"}, where)
        return Choice("required", (_named(choice, tools, where),))
    if kind != "allowed_tools":
        raise RequestError(f"{where}.type: expected function or allowed_tools, got {kind!r}")
    _check_keys(choice, {"type", "allowed_tools"}, where)
    allowed, where = _field(choice, "allowed_tools", where), f"{where}.allowed_tools"
    listed = checked_list(_field(allowed, "tools", where), f"{where}.tools")
    if not listed:
        raise RequestError(f"{where}.tools: expected one at least, got none")
    may = [_named(one, tools, f"{where}.tools[{n}]") for n, one in enumerate(listed)]
    mode = _mode(_field(allowed, "mode", where), f"{where}.mode", _MODES[1:])
    return Choice(mode, tuple(tool for tool in tools if tool in may))


def _tool(tool: Any, where: str) -> Tool:
    kind = _field(tool, "type", where)
    if kind != "function":
        raise RequestError(f"{where}.type: expected function, got {kind!r}")
    _check_keys(tool, {"type", "function"}, where)
    function, where = _field(tool, "function", where), f"{where}.function"
    name = _field(function, "name", where)
    _check_keys(function, _FUNCTION_KEYS, where)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise RequestError(
            f"{where}.name: expected 1 to 64 letters, digits, underscores or hyphens, got {name!r}"
        )
    description, strict = function.get("description"), function.get("strict")
    if not isinstance(description, str | None):
        raise RequestError(f"{where}.description: expected a text, got {description!r}")
    if not isinstance(strict, bool | None):
        raise RequestError(f"{where}.strict: expected true or false, got {strict!r}")
    parameters = _parameters(function.get("parameters"), f"{where}.parameters")
    return Tool(name, description, parameters, bool(strict))


def _parameters(schema: Any, where: str) -> dict[str, Any]:
    """An object's schema; none is that of no parameters."""
    if schema is None:
        return {"type": "object", "properties": {}}
    if not isinstance(schema, Mapping):
        raise RequestError(f"{where}: expected a JSON schema, got {type(schema).__name__}")
    if schema.get("type", "object") != "object":
        raise RequestError(f"{where}.type: expected object, got {schema['type']!r}")
    if not isinstance(schema.get("properties", {}), Mapping):
        raise RequestError(f"{where}.properties: expected an object, got {schema['properties']!r}")
    return {"type": "object", **schema}


def _named(choice: Any, tools: Sequence[Tool], where: str) -> Tool:
    """The tool of {"type": "function", "function": {"name": ...}}."""
    if (kind := _field(choice, "type", where)) != "function":
        raise RequestError(f"{where}.type: expected function, got {kind!r}")
    where = f"{where}.function"
    name = _field(choice.get("function"), "name", where)
    for tool in tools:
        if tool.name == name:
            return tool
    known = ", ".join(tool.name for tool in tools)
    raise RequestError(f"{where}.name: expected one of {known}, got {name!r}")


def _mode(mode: Any, where: str, modes: Sequence[str]) -> Any:
    if mode not in modes:
        raise RequestError(f"{where}: expected {' or '.join(modes)}, got {mode!r}")
    return mode


def _field(value: Any, key: str, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise RequestError(f"{where}: expected an object, got {value!r}")
    if key not in value:
        raise RequestError(f"{where}.{key}: missing")
    return value[key]


def _check_keys(value: Mapping[str, Any], known: set[str], where: str) -> None:
    if unknown := sorted(str(key) for key in value.keys() - known):
        raise RequestError(f"{where}.{unknown[0]}: not known; known are {', '.join(sorted(known))}")


def checked_list(value: Any, where: str) -> Sequence[Any]:
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise RequestError(f"{where}: expected a list, got {type(value).__name__}")
    return value
