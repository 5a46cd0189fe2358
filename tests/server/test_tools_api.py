"""Tools, asked for by the official client: calls whole and streamed, the choice, the way back."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from m40llm.llm.service import Service
from m40llm.server.app import create_app
from m40llm.server.settings import Settings
from m40llm.testing import write_tiny_gguf
from m40llm.testing.scripted import ScriptedService

HERMES = """{%- if tools %}<tools>{%- for tool in tools %}{{- tool | tojson }}{%- endfor %}</tools>
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>{%- endif %}
{%- for message in messages %}<{{ message.role }}>{{- message.content }}
{%- for tool_call in message.tool_calls or [] %}{%- set call = tool_call.function %}<tool_call>
{"name": "{{ call.name }}", "arguments": {{ call.arguments | tojson }}}
</tool_call>{%- endfor %}
{%- if message.role == 'tool' %}<tool_response>{%- endif %}{%- endfor %}<assistant>"""
HELLO: Any = [{"role": "user", "content": "rain?"}]
CITY = {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]}
TOOLS: Any = [
    {
        "type": "function",
        "function": {"name": "weather", "description": "Of a city", "parameters": CITY},
    },
    {"type": "function", "function": {"name": "now"}},
]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
TWO = f"{CALL}\n" + '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tools")
    how: dict[str, Any] = {"tokenizer": "bpe", "chat_template": HERMES, "context_length": 1024}
    return write_tiny_gguf(folder / "tools.gguf", **how)


@pytest.fixture
def service(path: Path) -> ScriptedService:
    made = ScriptedService(path)
    made.llm.max_seq_len = 1024
    return made


@pytest.fixture
def client(served: Callable[..., str]) -> OpenAI:
    return OpenAI(base_url=f"{served()}/v1", api_key="none", max_retries=0)


def schema_format(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}


def say(service: Any, text: str) -> None:
    service.script.text = text
    service.script.n_tokens = len(service.llm.tokenizer.encode_inside(text))


def calls_of(message: Any) -> list[tuple[str, Any]]:
    return [(c.function.name, json.loads(c.function.arguments)) for c in message.tool_calls or []]


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        (CALL, None, [("weather", {"city": "Oslo"})]),
        ("Let me see. " + CALL, "Let me see. ", [("weather", {"city": "Oslo"})]),
        (TWO, None, [("weather", {"city": "Oslo"}), ("now", {})]),
        ("It rains.", "It rains.", []),
    ],
)
def test_calls_whole_and_streamed(
    client: OpenAI, service: Any, text: str, content: str | None, calls: Any
) -> None:
    say(service, text)
    how: Any = {"model": "tiny", "messages": HELLO, "tools": TOOLS}
    (choice,) = client.chat.completions.create(**how).choices
    assert calls_of(choice.message) == calls
    assert (choice.message.content or "").strip() == (content or "").strip()
    assert choice.finish_reason == ("tool_calls" if calls else "stop")
    assert (choice.message.tool_calls is None) == (not calls)
    said, arguments, ids = "", [""] * len(calls), set()
    last = None
    for chunk in client.chat.completions.create(**how, stream=True):
        delta, last = chunk.choices[0].delta, chunk.choices[0].finish_reason or last
        said += delta.content or ""
        for call in delta.tool_calls or []:
            assert call.function is not None
            arguments[call.index] += call.function.arguments or ""
            if call.id:
                ids.add(call.id)
                assert call.type == "function"
                assert call.function.name == calls[call.index][0]
    assert said.strip() == (content or "").strip()
    assert [json.loads(one) for one in arguments] == [of for _, of in calls]
    assert len(ids) == len(calls)
    assert last == choice.finish_reason


def test_the_model_sees_tools_and_what_they_said(client: OpenAI, service: Any) -> None:
    say(service, CALL)
    message: Any = (
        client.chat.completions.create(model="tiny", messages=HELLO, tools=TOOLS).choices[0].message
    )
    answers: Any = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "wet"}
    client.chat.completions.create(
        model="tiny", messages=[*HELLO, message, answers], tools=TOOLS, tool_choice="none"
    )
    first, second = (service.llm.tokenizer.decode(one["prompt"]) for one in service.asked)
    assert '"name": "weather", "description": "Of a city"' in first
    assert "<tools>" not in second  # none is to be called
    assert CALL in second
    assert "<tool>wet<tool_response>" in second


def test_choices_constrain(client: OpenAI, service: Any) -> None:
    say(service, CALL)
    named: Any = {"type": "function", "function": {"name": "now"}}
    for choice in ("auto", "required", named, "none"):
        how: Any = {"messages": HELLO, "tools": TOOLS, "tool_choice": choice}
        client.chat.completions.create(model="tiny", **how)
    grammars = [one["params"].lark for one in service.asked]
    assert len(set(grammars)) == 4
    assert grammars[3] is None
    assert "weather" not in grammars[2]


@pytest.mark.parametrize(
    ("change", "param", "told"),
    [
        ({"tools": [{"type": "retrieval"}]}, "tools[0].type", "expected function"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "missing"),
        (
            {"tools": [{"type": "function", "function": {"name": "a b"}}]},
            *("tools[0].function.name", "letters, digits"),
        ),
        ({"tools": TOOLS + TOOLS[:1]}, "tools[2].function.name", "there twice"),
        ({"tools": "weather"}, "tools", "list"),
        ({"tools": TOOLS, "tool_choice": "maybe"}, "tool_choice", "none or auto or required"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}},
            *("tool_choice.function.name", "expected one of weather, now"),
        ),
        ({"tool_choice": "required"}, "tool_choice", "expected tools beside it"),
        (
            {"tools": TOOLS, "response_format": schema_format({"type": "nothing"})},
            *("response_format", "nothing"),
        ),
        ({"tools": TOOLS, "regex": "a+"}, "regex", "expected none beside tools"),
        ({"tools": TOOLS, "lark": "("}, "lark", "expected none beside tools"),
        (
            {"tools": TOOLS, "regex": "a+", "response_format": {"type": "json_object"}},
            *("regex", "expected none beside tools"),
        ),
        (
            {"messages": [*HELLO, {"role": "tool", "tool_call_id": "x", "content": "a"}]},
            *("messages[1].tool_call_id", "expected the id of a call"),
        ),
    ],
)
def test_refusals(ask: Any, service: Any, change: Any, param: str, told: str) -> None:
    answer = ask.post("/v1/chat/completions", **{"model": "tiny", "messages": HELLO} | change)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert told in error["message"]
    assert service.asked == []


def test_a_choice_needs_llguidance(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m40llm.server.fields.find_spec", lambda name: None)
    asked = {"model": "tiny", "messages": HELLO, "tools": TOOLS, "tool_choice": "required"}
    answer = ask.post("/v1/chat/completions", **asked)
    assert (answer.status_code, answer.json()["error"]["param"]) == (501, "tool_choice")


@pytest.fixture(scope="module")
def real(path: Path) -> Iterator[Any]:
    with Service.load(path, device="cpu", slots=2) as service:
        yield create_app(service, Settings(names=("tiny",)))


@pytest.mark.parametrize("seed", range(3))
def test_a_model_that_must_call_does(real: Any, seed: int) -> None:
    """Drawn weights know nothing of tools: what they say is held to the schema."""
    import asyncio

    import httpx

    asked = {"model": "tiny", "messages": HELLO, "tools": TOOLS, "tool_choice": "required"}
    asked |= {"parallel_tool_calls": False, "seed": seed, "max_tokens": 300}

    async def ask() -> Any:
        transport = httpx.ASGITransport(app=real)
        async with httpx.AsyncClient(transport=transport, base_url="http://a") as client:
            return (await client.post("/v1/chat/completions", json=asked, timeout=60)).json()

    (choice,) = asyncio.run(ask())["choices"]
    assert choice["finish_reason"] == "tool_calls"
    (call,) = choice["message"]["tool_calls"]
    arguments = json.loads(call["function"]["arguments"])
    if call["function"]["name"] == "weather":
        assert arguments in ({"city": "Rome"}, {"city": "Oslo"})
    else:
        assert (call["function"]["name"], arguments) == ("now", {})


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("choice", ["auto", "required", "none"])
def test_a_schema_beside_tools(real: Any, choice: str, seed: int) -> None:
    """What the model says is a call or JSON of the schema, whatever its weights."""
    import asyncio

    import httpx

    schema = {"type": "object", "properties": {"a": {"enum": ["[TOOL_CALLS]"]}}, "required": ["a"]}
    schema |= {"additionalProperties": False, "x-guidance": {"whitespace_flexible": False}}
    asked = {"model": "tiny", "messages": HELLO, "tools": TOOLS, "tool_choice": choice}
    asked |= {"seed": seed, "max_tokens": 300, "parallel_tool_calls": False}
    asked |= {"response_format": schema_format(schema)}

    async def ask() -> Any:
        transport = httpx.ASGITransport(app=real)
        async with httpx.AsyncClient(transport=transport, base_url="http://a") as client:
            return (await client.post("/v1/chat/completions", json=asked, timeout=60)).json()

    (one,) = asyncio.run(ask())["choices"]
    if one["finish_reason"] == "tool_calls":
        assert choice != "none"
        assert one["message"]["content"] is None
        assert [name for name, _ in calls_of_json(one)] in (["weather"], ["now"])
    else:
        assert choice != "required"
        assert json.loads(one["message"]["content"]) == {"a": "[TOOL_CALLS]"}


def calls_of_json(choice: Any) -> list[tuple[str, Any]]:
    functions = [call["function"] for call in choice["message"]["tool_calls"]]
    return [(one["name"], json.loads(one["arguments"])) for one in functions]


def test_words_beside_a_schema_are_not_looked_through(client: OpenAI, service: Any) -> None:
    """A call is at the beginning, or there is none; the service here heeds no constraint."""
    for text, n_calls in ((CALL, 1), (f'"{CALL}"', 0)):
        say(service, text)
        how: Any = {"messages": HELLO, "tools": TOOLS, "response_format": {"type": "json_object"}}
        (choice,) = client.chat.completions.create(model="tiny", **how).choices
        assert len(choice.message.tool_calls or []) == n_calls
        assert n_calls or choice.message.content == text
        params = service.asked[-1]["params"]
        assert params.json_schema is None
        assert "answer" in params.lark
    client.chat.completions.create(model="tiny", **how, tool_choice="none")
    assert service.asked[-1]["params"].json_schema == {"type": "object"}


def test_a_schema_beside_calls_that_are_json_alone(
    tmp_path: Path, ask_of: Any, service: Any
) -> None:
    template = '<|start_header_id|>{{ tools }}"parameters"{{ messages[0].content }}'
    path = write_tiny_gguf(tmp_path / "llama.gguf", tokenizer="bpe", chat_template=template)
    service.llm.tokenizer = ScriptedService(path).llm.tokenizer
    asked = {"model": "tiny", "messages": HELLO, "tools": TOOLS}
    asked |= {"response_format": {"type": "json_object"}}
    answer = ask_of().post("/v1/chat/completions", **asked)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "response_format")
    assert "calls of this model are JSON, too" in error["message"]
    for choice in ("none", "required"):
        answer = ask_of().post("/v1/chat/completions", **asked, tool_choice=choice)
        assert answer.status_code == 200


def test_tools_that_nobody_knows_here(tiny_path: Path, ask_of: Any, service: Any) -> None:
    service.llm.tokenizer = ScriptedService(tiny_path).llm.tokenizer
    answer = ask_of().post("/v1/chat/completions", model="tiny", messages=HELLO, tools=TOOLS)
    assert answer.status_code == 400
    assert "take a model that was trained on tools" in answer.json()["error"]["message"]
