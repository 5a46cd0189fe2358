"""What a model may say: token by token, and whole answers of one that says anything."""

import json
from codecs import getincrementaldecoder
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tool_models import QWEN, TEMPLATES, TOOLS, marks_of, tokenizer_with, write_model

from m40llm import LLM, SamplingParams
from m40llm.engine.constraint import ids_of
from m40llm.errors import RequestError
from m40llm.llm.constraint import Constraints
from m40llm.llm.results import ToolCall
from m40llm.llm.tools import ToolEvent, gathered, tool_format
from m40llm.llm.tools.definitions import read_tools
from m40llm.llm.tools.grammar import arguments_schema
from m40llm.llm.tools.layouts import layout_of
from m40llm.text import Tokenizer

pytest.importorskip("llguidance", reason="no constraints: pip install llguidance")

WEATHER = ("get_weather", '{"city": "Rome", "days": 3}')
STOP = ("stop", "{}")
NAMED = {"type": "function", "function": {"name": "get_weather"}}
SEVERAL = [name for name in TEMPLATES if name != "llama3"]  # calls in one answer


class Speaker:
    """A format over a vocabulary, asked what it lets pass."""

    def __init__(self, tokenizer: Tokenizer, schema: dict[str, Any] | None = None) -> None:
        self._schema = schema
        self.tokenizer, self.format = tokenizer, tool_format(tokenizer)
        self._constraints = Constraints(tokenizer, tokenizer.vocab_size)

    def written(self, *calls: tuple[str, str]) -> str:
        layout = layout_of(self.tokenizer.chat_template or "")
        assert layout is not None
        return layout.written(list(calls))

    def stops_at(self, text: str, choice: Any = None, parallel: bool = True) -> str | None:
        """The rest of the text from the first token on that may not come; "" where the text may
        not end; None where it may come whole."""
        tokenizer = self.tokenizer
        lark = self.format.constraint(TOOLS, choice, parallel, self._schema)["lark"]
        constraint = self._constraints.of(SamplingParams(lark=lark))
        assert constraint is not None
        ids = tokenizer.encode(text, add_bos=False, parse_special=True)
        if not tokenizer.is_special(ids[0]):  # without the space that spm puts before a text
            ids = ids if tokenizer.token_text(ids[0]) != "▁" else ids[1:]
        for at, token_id in enumerate([*ids, min(tokenizer.stop_ids)]):
            mask = constraint.mask()
            if not mask[token_id // 32] >> (token_id % 32) & 1:
                return tokenizer.decode(ids[at:], continuing=True)
            constraint.heed(token_id)
        return None

    def banned_behind(self, text: str) -> list[int]:
        """The tokens that may not come then, where the choice is "auto"."""
        constraint = self._constraints.of(self.format.constrained(None, TOOLS, "auto"))
        assert constraint is not None
        for token_id in self.tokenizer.encode_inside(text):
            constraint.heed(token_id)
        n_tokens = self.tokenizer.vocab_size
        allowed = set(ids_of(constraint.mask(), n_tokens).tolist())
        return [token_id for token_id in range(n_tokens) if token_id not in allowed]

    def told(self, text: str) -> tuple[str, list[tuple[str, str]]]:
        """Text and calls, as the parser tells them of the tokens."""
        decoder, parser = self.tokenizer.stream_decoder(), self.format.parser(TOOLS)
        ids = self.tokenizer.encode(text, add_bos=False, parse_special=True)
        events = [event for i in ids for event in parser.push(decoder.push(i), i)]
        said, calls = gathered(events + parser.finish())
        return said, [(call.name, call.arguments) for call in calls]


@pytest.fixture(
    scope="module",
    params=[
        (name, vocabulary, kind)
        for name in TEMPLATES
        for vocabulary in ("bpe", "spm")
        for kind in ("control", "user_defined", "none")
    ],
    ids="-".join,
)
def speaker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Speaker:
    """Each format, its marks control tokens, tokens of the text, or no tokens."""
    name, vocabulary, kind = request.param
    tokens = {} if kind == "none" else {kind: marks_of(TEMPLATES[name])}
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    return Speaker(tokenizer_with(path, TEMPLATES[name], vocabulary, **tokens))


def test_required(speaker: Speaker) -> None:
    one = speaker.written(WEATHER)
    assert speaker.told(one) == ("", [WEATHER])
    for parallel in (False, True):
        assert speaker.stops_at(one, "required", parallel) is None
        assert speaker.stops_at(speaker.written(STOP), "required", parallel) is None
        assert speaker.stops_at("Hello", "required", parallel) == "Hello"
        assert (speaker.stops_at(one + "x", "required", parallel) or "").lstrip() == "x"
    assert speaker.stops_at(one, NAMED) is None
    assert speaker.stops_at(speaker.written(STOP), NAMED)
    for wrong in ('{"city": "Oslo", "days": 3}', '{"city": "Rome"}', "{}", '{"city": "Rome", "x'):
        assert speaker.stops_at(speaker.written(("get_weather", wrong)), "required")
    assert speaker.stops_at(speaker.written(("get_rain", "{}")), "required")


def test_several_calls(speaker: Speaker) -> None:
    two = speaker.written(WEATHER, STOP)
    is_one = speaker.format.name not in SEVERAL
    assert (speaker.stops_at(two, "required", parallel=True) is None) == (not is_one)
    assert speaker.stops_at(two, "required", parallel=False)
    assert (speaker.stops_at(two, "auto") is None) == (not is_one)
    assert is_one or speaker.told(two) == ("", [WEATHER, STOP])


def test_auto(speaker: Speaker) -> None:
    one = speaker.written(WEATHER)
    mark = marks_of(speaker.tokenizer.chat_template or "")[0]
    for text in ("Hello.\n", "<", 'so {"name" is', one, f"Hm. {mark}{one.removeprefix(mark)}"):
        assert speaker.stops_at(text) is None
    assert speaker.stops_at(f"Hm. {mark}maybe") == "maybe"
    assert (speaker.stops_at(one + " So") or "").lstrip() == "So"
    assert speaker.told("Hello.\n") == ("Hello.\n", [])
    assert speaker.told(f"Hm. {mark}{one.removeprefix(mark)}") == ("Hm. ", [WEATHER])


@pytest.mark.parametrize("text", ["", "Hello, ", '{"a'])
def test_text_is_free(speaker: Speaker, text: str) -> None:
    """All may come but bytes that are no UTF-8, what closes calls, and tokens of no bytes."""
    tokenizer = speaker.tokenizer
    marks = marks_of(tokenizer.chat_template or "")
    for token_id in speaker.banned_behind(text):
        spelled = tokenizer.token_bytes(token_id)
        if spelled and tokenizer.token_text(token_id) not in marks:
            with pytest.raises(UnicodeDecodeError):
                getincrementaldecoder("utf-8")().decode(spelled)


def test_none(speaker: Speaker) -> None:
    assert speaker.format.constraint(TOOLS, "none") == {}
    parser, one = speaker.format.parser(TOOLS, "none"), speaker.written(WEATHER)
    assert gathered(parser.push(one, 0) + parser.finish()) == (one, ())


def test_json_is_text_to_llama_until_it_names_a_tool(tmp_path: Path) -> None:
    llama = Speaker(tokenizer_with(tmp_path / "tiny.gguf", TEMPLATES["llama3"]))
    assert llama.stops_at('{"city": "Rome"}') is None
    assert llama.stops_at('\n{"name": "stop", "parameters": {}}') is None
    assert llama.stops_at('{"name": "Rome"}') == 'Rome"}'


def test_other_control_tokens_may_come_between_words(tmp_path: Path) -> None:
    control = ["<think>", "<tool_call>", "<|reserved|>"]
    free = Speaker(tokenizer_with(tmp_path / "tiny.gguf", QWEN, control=control))
    assert free.stops_at("<think>so<|reserved|> be it<|reserved|>") is None
    assert free.stops_at(f"<think>a{free.written(STOP)}") is None
    assert free.stops_at("<|reserved|>", "required") == "<|reserved|>"


@pytest.mark.parametrize("control", [(), ("</think>", "<tool_call>")])
def test_a_thought_that_the_prompt_has_begun(tmp_path: Path, control: tuple[str, ...]) -> None:
    template = QWEN.replace(
        "assistant\\n' }}\n{%- endif %}\n", "assistant\\n<think>\\n' }}\n{%- endif %}\n"
    )
    thinker = Speaker(tokenizer_with(tmp_path / "tiny.gguf", template, control=control))
    one = thinker.written(STOP)
    assert thinker.stops_at(f"Hm.\n</think>\n\n{one}", "required") is None
    assert thinker.stops_at(one, "required") is None
    assert thinker.stops_at("Hm.", "required") == ""
    assert thinker.stops_at(f"Hm.</think>{one}{one}", "required", parallel=False)
    plain = Speaker(tokenizer_with(tmp_path / "plain.gguf", QWEN, control=control))
    assert plain.stops_at(f"Hm.\n</think>\n\n{one}", "required")


@pytest.mark.parametrize("name", SEVERAL)
def test_an_answer_of_a_schema_or_a_call(name: str, tmp_path: Path) -> None:
    template = TEMPLATES[name]
    for control in ([], marks_of(template)):
        tokenizer = tokenizer_with(tmp_path / "tiny.gguf", template, control=control)
        either = Speaker(tokenizer, schema={"type": "object", "required": ["a"]})
        assert either.stops_at('{"a": 1}') is None
        assert either.stops_at(either.written(WEATHER)) is None
        assert either.stops_at("{}")
        assert either.stops_at("Hello")
        assert either.stops_at('{"a": 1}', "required")


def test_a_schema_beside_tools(tmp_path: Path) -> None:
    tools = tool_format(tokenizer_with(tmp_path / "tiny.gguf", TEMPLATES["llama3"]))
    schema = {"type": "object"}
    assert tools.constraint(TOOLS, "none", schema=schema) == {"json_schema": schema}
    assert "answer" not in tools.constraint(TOOLS, "required", schema=schema)["lark"]
    with pytest.raises(RequestError, match="json_schema: expected none beside tools"):
        tools.constraint(TOOLS, "auto", schema=schema)


def test_a_schema_is_that_of_params(speaker: Speaker) -> None:
    """Read as without tools: the same texts may come and no others, and none is a call."""
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    form, tokenizer = speaker.format, speaker.tokenizer
    for choice in ("auto", "required", "none"):
        if choice == "auto" and form.name not in SEVERAL:
            continue
        for given in (schema, json.dumps(schema)):
            params = form.constrained(SamplingParams(json_schema=given), TOOLS, choice)
            assert (params.json_schema is None) == (choice != "none")
            assert (params.lark is None) == (choice == "none")
    if form.name in SEVERAL:
        with_tools, alone = Speaker(tokenizer, schema), Constraints(tokenizer, 500)
        for text in ('{"a": "b"}', '{"a":"b"}', '{\n"a": 1}', '{"b": 1}', '{"a": "x", "b": []}'):
            whole = alone.of(SamplingParams(json_schema=schema))
            assert whole is not None
            ids = tokenizer.encode_inside(text)
            may = []
            for token_id in [*ids, min(tokenizer.stop_ids)]:
                may.append(bool(whole.mask()[token_id // 32] >> (token_id % 32) & 1))
                if not may[-1]:
                    break
                whole.heed(token_id)
            assert (with_tools.stops_at(text) is None) == all(may)


@pytest.mark.parametrize("text", ["[TOOL_CALLS]stop[ARGS]{}", "<tool_call>", "[1]", "{"])
def test_words_in_an_answer_of_a_schema_are_no_call(speaker: Speaker, text: str) -> None:
    """Marks may be spelled out in its strings."""
    answer = json.dumps({"a": text})
    parser = speaker.format.parser(TOOLS, at_once=True)
    events = [event for char in answer for event in parser.push(char, -1)]
    assert gathered(events + parser.finish()) == (answer, ())
    one = speaker.written(WEATHER)
    parser = speaker.format.parser(TOOLS, at_once=True)
    events = [event for char in one for event in parser.push(char, -1)]
    said, calls = gathered(events + parser.finish())
    assert (said, [(call.name, call.arguments) for call in calls]) == ("", [WEATHER])


def test_a_schema_leaves_no_room_for_a_thought(tmp_path: Path) -> None:
    template = QWEN.replace(
        "assistant\\n' }}\n{%- endif %}\n", "assistant\\n<think>\\n' }}\n{%- endif %}\n"
    )
    thinker = Speaker(tokenizer_with(tmp_path / "t.gguf", template), {"type": "object"})
    one = thinker.written(STOP)
    for choice in ("auto", "required"):
        assert thinker.stops_at(one, choice) is None
        assert thinker.stops_at(f"Hm.\n</think>\n\n{one}", choice)


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("json_schema", {"type": "nothing"}, "json_schema: "),
        ("json_schema", "no JSON", "json_schema: no JSON"),
        ("json_schema", nested(5_000), "json_schema: no JSON: maximum recursion depth"),
        ("regex", "a+", "regex: expected none beside tools, unless tool_choice is none"),
        ("lark", 'start: "a"', "lark: expected none beside tools, unless tool_choice is none"),
    ],
)
def test_what_cannot_be_beside_tools(tmp_path: Path, field: str, value: Any, told: str) -> None:
    tools = tool_format(tokenizer_with(tmp_path / "tiny.gguf", QWEN))
    params = SamplingParams(**{field: value})
    for choice in ("auto", "required"):
        with pytest.raises(RequestError, match=f"^{told}"):
            tools.constrained(params, TOOLS, choice)
    assert getattr(tools.constrained(params, TOOLS, "none"), field) is value


def strict_tool(strict: bool, **parameters: Any) -> list[dict[str, Any]]:
    return [
        {
            "type": "function",
            "function": {"name": "f", "parameters": parameters, "strict": strict},
        }
    ]


@pytest.mark.parametrize(
    "said", [{"format": "colour"}, {"not": {"const": "a"}}, {"uniqueItems": True, "type": "array"}]
)
def test_strict(tmp_path: Path, said: dict[str, Any]) -> None:
    """What of a schema cannot be enforced is refused where it must be, and left where not."""
    tokenizer = tokenizer_with(tmp_path / "tiny.gguf", QWEN)
    tools = tool_format(tokenizer)
    odd = {"properties": {"a": {"type": "string", **said}}}
    lenient = tools.constrained(None, strict_tool(False, **odd), "required")
    assert Constraints(tokenizer, tokenizer.vocab_size).of(lenient) is not None
    with pytest.raises(RequestError, match=r"tools\[0\].function.parameters: .*strict true"):
        tools.constrained(None, strict_tool(True, **odd), "required")


@pytest.mark.parametrize(
    "parameters",
    [
        {"properties": {"a": {"type": "person"}}},
        {"properties": {"a": {"type": "string", "pattern": "(?=a)b"}}},
        {"properties": {"a": {"$ref": "https://example.com/a.json"}}},
        {"properties": {"a": False}, "required": ["a"]},
    ],
)
def test_a_schema_that_cannot_be(tmp_path: Path, parameters: dict[str, Any]) -> None:
    tools = tool_format(tokenizer_with(tmp_path / "tiny.gguf", QWEN))
    asked = [TOOLS[1], *strict_tool(False, **parameters)]
    for choice in ("auto", "required"):
        with pytest.raises(RequestError, match=r"^tools\[1\].function.parameters: "):
            tools.constraint(asked, choice)
    assert tools.constraint(asked, {"type": "function", "function": {"name": "stop"}})


@pytest.mark.parametrize(
    ("parameters", "more"),
    [
        ({"properties": {"a": {}}}, False),
        ({"properties": {"a": {}}, "additionalProperties": True}, True),
        ({"properties": {"a": {}}, "allOf": [{"required": ["b"]}]}, None),
        ({}, None),
    ],
)
def test_arguments_that_are_not_named(parameters: dict[str, Any], more: bool | None) -> None:
    (tool,) = read_tools(strict_tool(True, **parameters))
    assert arguments_schema(tool).get("additionalProperties") == more


def test_without_llguidance_only_auto(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = tool_format(tokenizer_with(tmp_path / "tiny.gguf", QWEN))
    monkeypatch.setattr("m40llm.llm.tools.formats.find_spec", lambda name: None)
    assert tools.constraint(TOOLS, "auto") == {}
    assert tools.constraint(TOOLS, "required")


# Whole answers.


@pytest.fixture(scope="module", params=["hermes", "mistral"])
def llm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    """Random weights."""
    template = TEMPLATES[request.param]
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_model(path, template, control=marks_of(template), context_length=4096)
    with LLM.load(path, device="cpu") as llm:
        yield llm


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("choice", ["required", NAMED])
def test_a_random_model_calls_as_it_must(llm: LLM, seed: int, choice: Any) -> None:
    params = SamplingParams(seed=seed, max_tokens=400)
    messages = [{"role": "user", "content": "Rome?"}]
    asked: dict[str, Any] = {"tools": TOOLS, "tool_choice": choice}
    answer = llm.chat(messages, params, **asked, parallel_tool_calls=False)
    assert (answer.stop_reason, answer.text, len(answer.tool_calls)) == ("stop", "", 1)
    check(answer.tool_calls, choice)
    more = llm.chat(messages, params, **asked)
    check(more.tool_calls if more.stop_reason == "stop" else more.tool_calls[:-1], choice)
    said = [*messages, *history(answer.tool_calls)]
    assert llm.chat(said, params, tools=TOOLS, tool_choice="none").tool_calls == ()


def check(calls: tuple[ToolCall, ...], choice: Any) -> None:
    for call in calls:
        read = json.loads(call.arguments)
        if call.name == "get_weather":
            assert read["city"] in ("Paris", "Rome")
            assert 0 <= read["days"] <= 9
            assert len(read) == 2
        else:
            assert (call.name, read) == ("stop", {})
            assert choice is not NAMED


def history(calls: Any) -> list[dict[str, Any]]:
    """What a client sends of an answer's calls, with what the tools have answered."""
    listed = [
        {
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for call in calls
    ]
    answers = [{"role": "tool", "tool_call_id": call.id, "content": "{}"} for call in calls]
    return [{"role": "assistant", "content": None, "tool_calls": listed}, *answers]


def test_a_chat_whose_template_has_no_tools(tmp_path: Path) -> None:
    write_model(tmp_path / "tiny.gguf", "{{ messages[0].content }}")
    with (
        LLM.load(tmp_path / "tiny.gguf", device="cpu") as llm,
        pytest.raises(RequestError, match="tools: the model's chat template has no tools"),
    ):
        llm.chat([{"role": "user", "content": "a"}], tools=TOOLS)


def test_a_chat_that_must_call_nothing(llm: LLM) -> None:
    with pytest.raises(RequestError, match="tool_choice: expected tools beside it"):
        llm.chat([{"role": "user", "content": "a"}], tool_choice="required")


def test_a_stream_and_its_events(llm: LLM) -> None:
    """As docs/tools.md has it; the same as a chat that comes whole."""
    form = tool_format(llm.tokenizer)
    messages, params = [{"role": "user", "content": "Rome?"}], SamplingParams(temperature=0)
    prompt = llm.tokenizer.encode_chat(**form.prompt_variables(TOOLS, NAMED, messages))
    parser, events = form.parser(TOOLS), list[ToolEvent]()
    for item in llm.stream(prompt, form.constrained(params, TOOLS, NAMED, parallel=False)):
        events += parser.push(item.text, item.token_id)
    text, calls = gathered(events + parser.finish())
    asked: dict[str, Any] = {"tools": TOOLS, "tool_choice": NAMED, "parallel_tool_calls": False}
    whole = llm.chat(messages, params, **asked)
    assert text == whole.text == ""
    assert [call.arguments for call in calls] == [call.arguments for call in whole.tool_calls]
    assert len(calls) == 1
