"""What pydantic found wrong with a request, as one of OpenAI's errors."""

from collections.abc import Sequence
from typing import Any, Final

from m40llm.server.errors import ApiError

_ROLES: Final = ("system", "developer", "user", "assistant", "tool")
_TYPES: Final = ("str", "int", "float", "bool", "list", "dict")
_MOST: Final = 300  # characters of a value of the client's that an error repeats


def refusal(found: Sequence[Any]) -> ApiError:
    """Of the most telling finding: of a union's branches, the one that went deepest."""
    first = max(found, key=_tells)
    kind, place = first["type"], _place(first["loc"])
    param = _param(place)
    if kind == "extra_forbidden":
        told, code = f"Unrecognized request argument supplied: {param}", "unknown_parameter"
    elif kind == "missing" and place:
        told, code = f"{param}: missing; it is required", "missing_required_parameter"
    elif kind == "none_required":
        told, code = f"{param}: this server does not support it", "unsupported_parameter"
    elif kind == "json_invalid":
        told, code = f"the body is no JSON: {first['ctx']['error']}", "invalid_json"
        param = None
    elif not place:
        told = "the body: expected a JSON object, with content-type application/json"
        code = "invalid_json"
    else:
        others = [
            one for one in found if _tells(one) == _tells(first) and _place(one["loc"]) == place
        ]
        told, code = f"{param}: {_wanted(others)}", "invalid_value"
    return ApiError(400, told, code=code, param=param)


def _tells(one: Any) -> tuple[bool, int]:
    """How much; that it should have been of another type altogether tells least."""
    return not one["type"].endswith("_type"), len(_place(one["loc"]))


def _place(loc: Sequence[Any]) -> list[Any]:
    """Names and numbers alone: no tags of pydantic's unions."""
    place: list[Any] = []
    for at, part in enumerate(loc[1:]):
        before = loc[at]
        is_tag = isinstance(part, str) and (
            not (part.isidentifier() or part.isdigit())
            or part in _TYPES
            or (part in _ROLES and isinstance(before, int))
            or before == "response_format"
        )
        if not is_tag:
            place.append(part)
    return place


def _param(place: Sequence[Any]) -> str | None:
    """messages[0].content"""
    param = ""
    for part in place:
        param += f"[{part}]" if isinstance(part, int) else f".{part}" if param else str(part)
    return param or None


def _wanted(findings: Sequence[Any]) -> str:
    """What each branch of a union would have liked, and what came."""
    said = [str(one["msg"]) for one in findings]
    told = " or ".join(dict.fromkeys(text[:1].lower() + text[1:] for text in said))
    got = repr(findings[0].get("input"))
    return f"{told}, got {got if len(got) <= _MOST else got[:_MOST] + '...'}"
