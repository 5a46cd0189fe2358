"""Calls told from words, however the answer is cut into pieces."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m40llm.llm.tools import CallArguments, CallBegin, Text, ToolCall, ToolEvent, gathered
from m40llm.llm.tools.layouts import (
    GRANITE,
    HERMES,
    LAYOUTS,
    LLAMA3,
    MISTRAL,
    MISTRAL_ARGS,
    PHI,
    Layout,
)
from m40llm.llm.tools.parser import ToolParser

NO_TOKEN = -1
NAMES = ("f", "get_weather", "x-1")
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
ARGUMENTS = st.dictionaries(st.text(), JSON_VALUES, max_size=3).flatmap(
    lambda value: st.sampled_from(
        [json.dumps(value), json.dumps(value, ensure_ascii=False, indent=1)]
    )
)
CALLS = st.lists(st.tuples(st.sampled_from(NAMES), ARGUMENTS), min_size=1, max_size=3)
LAYOUT = st.sampled_from(LAYOUTS)
FRAGMENTS = (
    *("<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]", "[ARGS]", "<|tool_call|>"),
    *("<", "<tool", "[", "]", "{", "}", ",", ";", " ", "\n", "words", '"', "f", "[CALL_ID]"),
    *('{"name": "f", "arguments": ', '{"parameters": {"a": 1}, "name": "f"}', '{"a": [1]}'),
    *('{"name": "nobody", "arguments": {}}', '{"name": "f", "id": "abc", "arguments": {}}', "{}"),
)


def parser(layout: Layout, marks: dict[int, str] | None = None) -> ToolParser:
    count = itertools.count()
    return ToolParser(layout, marks or {}, NAMES, lambda: f"id{next(count)}")


def parsed(layout: Layout, *pieces: str) -> list[ToolEvent]:
    """All events, neighbours of a kind put together."""
    reading, events = parser(layout), list[ToolEvent]()
    for piece in pieces:
        events += reading.push(piece, NO_TOKEN)
    events += reading.finish()
    assert not reading.finish()
    together: list[ToolEvent] = []
    for event in events:
        last = together[-1] if together else None
        if isinstance(event, Text) and isinstance(last, Text):
            together[-1] = Text(last.text + event.text)
        elif isinstance(event, CallArguments) and isinstance(last, CallArguments):
            assert event.index == last.index
            together[-1] = CallArguments(event.index, last.text + event.text)
        else:
            together.append(event)
    return together


def called(layout: Layout, *pieces: str) -> tuple[str, list[tuple[str, str]]]:
    text, calls = gathered(parsed(layout, *pieces))
    assert [call.id for call in calls] == [f"id{n}" for n in range(len(calls))]
    return text, [(call.name, call.arguments) for call in calls]


@st.composite
def cut(draw: st.DrawFn, whole: str) -> list[str]:
    ends = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    return [whole[a:b] for a, b in itertools.pairwise([0, *ends, len(whole)])]


def one_by_one(calls: list[tuple[str, str]], layout: Layout) -> str:
    """As the layout writes them; ";" between those of Llama, which has no word for it."""
    if layout is LLAMA3:
        return "; ".join(layout.written([call]) for call in calls)
    return layout.written(calls)


@given(LAYOUT, CALLS, st.data())
def test_what_is_written_is_read(
    layout: Layout, calls: list[tuple[str, str]], data: st.DataObject
) -> None:
    pieces = data.draw(cut(one_by_one(calls, layout)))
    assert called(layout, *pieces) == ("", calls)


@given(LAYOUT, CALLS, st.text(alphabet="ab \n.", min_size=1))
def test_words_before_calls(layout: Layout, calls: list[tuple[str, str]], words: str) -> None:
    if layout is LLAMA3:
        calls, words = calls[:1], f"{words}<|python_tag|>"
    text, found = called(layout, words + one_by_one(calls, layout))
    assert found == calls
    assert text == words.removesuffix("<|python_tag|>")


@given(LAYOUT, st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=10), st.data())
def test_cut_anywhere_the_events_are_the_same(
    layout: Layout, fragments: list[str], data: st.DataObject
) -> None:
    whole = "".join(fragments)
    events = parsed(layout, whole)
    assert parsed(layout, *data.draw(cut(whole))) == events
    assert parsed(layout, *whole) == events
    if not any(isinstance(event, CallBegin) for event in events):
        assert events == ([Text(whole)] if whole else [])


@given(
    LAYOUT, st.lists(st.sampled_from(["<to", "<|too", "[TOOL_", "<|py", "a"]) | st.text(max_size=5))
)
def test_only_what_could_begin_a_call_is_held_back(layout: Layout, pieces: list[str]) -> None:
    reading, said, heard = parser(layout), "", ""
    for piece in (".", *pieces):
        heard += gathered(reading.push(piece, NO_TOKEN))[0]
        said += piece
        assert said.startswith(heard)
        assert any(mark.startswith(said[len(heard) :]) for mark in layout.opens)
    assert heard + gathered(reading.finish())[0] == said


def test_arguments_come_while_they_are_written() -> None:
    reading = parser(HERMES)
    assert reading.push('Well. <tool_call>\n{"name": "f", ', 0) == [Text("Well. ")]
    begun = [CallBegin(0, "id0", "f"), CallArguments(0, '{"a')]
    assert reading.push('"arguments": {"a', 0) == begun
    assert reading.push('": 1', 0) == [CallArguments(0, '": 1')]
    assert reading.push("}}\n</tool", 0) == [CallArguments(0, "}")]
    assert reading.push("_call>\n", 0) == []
    assert reading.finish() == []


def test_control_tokens_are_seen_by_their_ids() -> None:
    reading = parser(MISTRAL, {7: "[TOOL_CALLS]"})
    events = [
        *reading.push("a", 3),
        *reading.push("", 7),
        *reading.push('[{"name": "f", "arguments": {}}]', 4),
        *reading.finish(),
    ]
    assert gathered(events) == ("a", (ToolCall("id0", "f", "{}"),))
    reading = parser(MISTRAL_ARGS, {7: "[TOOL_CALLS]", 8: "[ARGS]"})
    events = [reading.push(text, n) for text, n in [("", 7), ("f", 1), ("", 8), ("{}", 2), ("", 7)]]
    events += [reading.push(text, n) for text, n in [("x-1", 1), ("", 8), ("{}", 2)]]
    calls = gathered(itertools.chain(*events, reading.finish()))[1]
    assert [(call.name, call.arguments) for call in calls] == [("f", "{}"), ("x-1", "{}")]


@pytest.mark.parametrize(
    ("layout", "answer"),
    [
        (HERMES, '<tool_call>{"name":"f","arguments":{}}</tool_call>'),
        (HERMES, '<tool_call>\n{"name": "f", "arguments": {}}'),  # without its closing mark
        (HERMES, '<tool_call> {"arguments": {}, "name": "f"} </tool_call>\n'),
        (LLAMA3, '\n{"name": "f", "parameters": {}}'),
        (LLAMA3, '<|python_tag|>{"type": "function", "name": "f", "parameters": {}}'),
        (LLAMA3, '{"name": "f", "arguments": {}}'),
        (MISTRAL, '[TOOL_CALLS] [{"name": "f", "arguments": {}, "id": "abcdefghi"}]'),
        (MISTRAL_ARGS, "[TOOL_CALLS]f[CALL_ID]abcdefghi[ARGS]{}"),
        (GRANITE, '<tool_call>[{"name": "f", "arguments": {}}]'),
        (PHI, '<|tool_call|>{"name": "f", "arguments": {}}<|/tool_call|>'),
        (PHI, '<|tool_call|>[{"name": "f", "arguments": {}}]'),
    ],
)
def test_what_models_write_besides(layout: Layout, answer: str) -> None:
    assert called(layout, answer) == ("", [("f", "{}")])


@pytest.mark.parametrize(
    "answer",
    [
        "<tool_call>",
        "<tool_call>\n{",
        "<tool_call>maybe</tool_call>",
        '<tool_call>{"name": "nobody", "arguments": {}}</tool_call>',
        '<tool_call>{"name": 3}',
        '<tool_call>{"name": ""}',
        '<tool_call>{"name": "f" "arguments"',
        '<tool_call>{"arguments": {}}',
        '<tool_call>{"arguments": {}, "arguments": {}, "name": "f"}',
        '<tool_call>{"arguments": [], "name": "f"}',
        '<tool_call>{"why": 1}',
        "<tool_call>[]",
        '<tool_call>{"na\\u006de": "f"}',
        '<tool_call>{"' + 300 * "a" + '": 1}',
    ],
)
def test_what_is_no_call_is_text(answer: str) -> None:
    assert called(HERMES, answer) == (answer, [])


def test_a_call_within_what_was_none() -> None:
    text, calls = called(HERMES, '<tool_call>{"a": <tool_call>{"name": "f", "arguments": {}}')
    assert (text, calls) == ('<tool_call>{"a": ', [("f", "{}")])


def test_a_call_that_goes_wrong() -> None:
    """What was certain has been said; the rest is text."""
    text, calls = called(HERMES, '<tool_call>{"name": "f", "arguments": {"a": 1] and so on')
    assert (text, calls) == ("] and so on", [("f", '{"a": 1')])
    text, calls = called(MISTRAL, '[TOOL_CALLS][{"name": "f", "arguments": {}}, {"name": "who"}]')
    assert (text, calls) == (', {"name": "who"}]', [("f", "{}")])


def test_a_call_that_is_cut_short() -> None:
    head = '<tool_call>{"name": "f", "arguments": '
    assert called(HERMES, head) == (head, [])
    assert called(HERMES, '<tool_call>{"name": "f", "arguments": {"a') == ("", [("f", '{"a')])
    assert called(LLAMA3, '{"nam') == ('{"nam', [])


def test_words_after_a_call() -> None:
    answer = '<tool_call>{"name": "f", "arguments": {}}</tool_call>\nDone. <tool_call> no'
    assert called(HERMES, answer) == ("\nDone. <tool_call> no", [("f", "{}")])


def test_json_that_llama_means_as_an_answer() -> None:
    answer = ' {"city": "Paris", "name": "f"} it is'
    assert parsed(LLAMA3, answer) == [Text(answer)]
    assert parsed(LLAMA3, 'So {"name": "f", "parameters": {}}') == [
        Text('So {"name": "f", "parameters": {}}')
    ]
