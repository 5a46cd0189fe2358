"""Tools and choices as callers give them: what is wrong is named, with its place."""

from typing import Any

import pytest
from tool_models import TOOLS, WEATHER

from m40llm.errors import RequestError
from m40llm.llm.tools.definitions import Choice, read_choice, read_tools

STOP_CHOICE = {"type": "function", "function": {"name": "stop"}}


def function(**fields: Any) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": "f", **fields}}]


def test_tools() -> None:
    weather, stop = read_tools(TOOLS)
    assert weather.function == WEATHER
    assert stop.function == {"name": "stop", "parameters": {"type": "object", "properties": {}}}
    assert not weather.strict
    assert read_tools(None) == read_tools([]) == ()
    assert read_tools(function(strict=True, parameters={"properties": {}}))[0].strict


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ({}, "tools: expected a list, got dict"),
        ("f", "tools: expected a list, got str"),
        ([3], "tools[0]: expected an object, got 3"),
        ([{}], "tools[0].type: missing"),
        ([{"type": "custom"}], "tools[0].type: expected function, got 'custom'"),
        ([{"type": "function"}], "tools[0].function: missing"),
        ([{"type": "function", "function": {}}], "tools[0].function.name: missing"),
        ([*TOOLS, {**TOOLS[0], "x": 1}], "tools[2].x: not known"),
        (function(name="a b"), "tools[0].function.name: expected 1 to 64 letters"),
        (function(name=""), "tools[0].function.name: expected 1 to 64 letters"),
        (function(name="a" * 65), "tools[0].function.name: expected 1 to 64 letters"),
        (function(name="a\n"), "tools[0].function.name: expected 1 to 64 letters"),
        (function(name=7), "tools[0].function.name: expected 1 to 64 letters"),
        ([*TOOLS, TOOLS[1]], "tools[2].function.name: 'stop' is there twice"),
        (function(description=1), "tools[0].function.description: expected a text, got 1"),
        (function(strict="yes"), "tools[0].function.strict: expected true or false, got 'yes'"),
        (function(parameter={}), "tools[0].function.parameter: not known; known are"),
        (function(parameters=[]), "tools[0].function.parameters: expected a JSON schema, got list"),
        (
            function(parameters={"type": "string"}),
            "tools[0].function.parameters.type: expected object, got 'string'",
        ),
        (
            function(parameters={"properties": []}),
            "tools[0].function.parameters.properties: expected an object, got []",
        ),
    ],
)
def test_what_is_no_tool(tools: Any, message: str) -> None:
    with pytest.raises(RequestError) as error:
        read_tools(tools)
    assert str(error.value).startswith(message)


def allowed(mode: str = "auto", tools: Any = (STOP_CHOICE,)) -> dict[str, Any]:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": list(tools)}}


def test_choices() -> None:
    tools = read_tools(TOOLS)
    assert read_choice(None, tools) == read_choice("auto", tools) == Choice("auto", tools)
    assert read_choice(None, ()) == read_choice("none", ()) == Choice("none", ())
    assert read_choice("none", tools).mode == "none"
    assert read_choice("required", tools) == Choice("required", tools)
    assert read_choice(STOP_CHOICE, tools) == Choice("required", tools[1:])
    assert read_choice(allowed(), tools) == Choice("auto", tools[1:])
    assert read_choice(allowed("required"), tools) == Choice("required", tools[1:])


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("always", "tool_choice: expected none or auto or required, got 'always'"),
        (3, "tool_choice: expected an object, got 3"),
        ({}, "tool_choice.type: missing"),
        ({"type": "custom"}, "tool_choice.type: expected function or allowed_tools, got 'custom'"),
        ({"type": "function"}, "tool_choice.function: expected an object, got None"),
        ({"type": "function", "function": {}}, "tool_choice.function.name: missing"),
        (
            {"type": "function", "function": {"name": "g"}},
            "tool_choice.function.name: expected one of get_weather, stop, got 'g'",
        ),
        ({**STOP_CHOICE, "mode": "auto"}, "tool_choice.mode: not known"),
        (allowed("none"), "tool_choice.allowed_tools.mode: expected auto or required, got 'none'"),
        (allowed(tools=()), "tool_choice.allowed_tools.tools: expected one at least, got none"),
        (
            allowed(tools=[STOP_CHOICE, {"type": "function", "function": {"name": "g"}}]),
            "tool_choice.allowed_tools.tools[1].function.name: expected one of",
        ),
    ],
)
def test_what_is_no_choice(choice: Any, message: str) -> None:
    with pytest.raises(RequestError) as error:
        read_choice(choice, read_tools(TOOLS))
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("choice", ["auto", "required", STOP_CHOICE])
def test_a_choice_of_nothing(choice: Any) -> None:
    with pytest.raises(RequestError, match="tool_choice: expected tools beside it, got none"):
        read_choice(choice, ())
