"""Stop strings beside tools: what could begin one is held back, and never behind a mark."""

from pathlib import Path
from typing import Any

import pytest
from tool_models import TEMPLATES, TOOLS, marks_of, tokenizer_with

from m40llm import SamplingParams
from m40llm.engine.step import Step, TokenLogprob
from m40llm.llm.results import Completion
from m40llm.llm.stream import Checked
from m40llm.llm.tools import ToolEvent, gathered, tool_format
from m40llm.llm.tools.layouts import layout_of
from m40llm.text import Tokenizer

WEATHER = ("get_weather", '{"city": "Rome", "days": 3}')


def answered(tokenizer: Tokenizer, text: str, stop: list[str]) -> tuple[str, Any, Completion]:
    """Text and calls as the parser has them, and the completion, of a model that says the text."""
    answer = Checked([0], SamplingParams(stop=stop), None).answer(tokenizer, 0.0)
    answer.clock.decode_s = 1.0
    parser = tool_format(tokenizer).parser(TOOLS)
    events: list[ToolEvent] = []
    ids = tokenizer.encode(text, add_bos=False, parse_special=True)
    for token_id in (*ids, min(tokenizer.stop_ids)):
        ends = token_id in tokenizer.stop_ids
        item = answer.add(Step(TokenLogprob(token_id, -1.0), "stop" if ends else None))
        events += parser.push(item.text, item.token_id)
        if answer.reason:
            break
    said, calls = gathered(events + parser.finish())
    return said, [(call.name, call.arguments) for call in calls], answer.completion


@pytest.fixture(scope="module", params=list(TEMPLATES))
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Its marks are control tokens, which have no text in a stream."""
    template = TEMPLATES[request.param]
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    return tokenizer_with(path, template, control=marks_of(template))


def test_the_beginning_of_a_stop_string_stays_before_the_mark(tokenizer: Tokenizer) -> None:
    template = tokenizer.chat_template or ""
    mark, layout = marks_of(template)[0], layout_of(template)
    assert layout is not None
    text = f"Hm. EN{mark}{layout.written([WEATHER]).removeprefix(mark)}"
    for stop in ([], ["END"], ["EN[", "N{"], ["Hm. ENx", "N\n\n"]):
        said, calls, completion = answered(tokenizer, text, stop)
        assert (said, calls) == ("Hm. EN", [WEATHER])
        assert completion.stop_reason == "stop"
        assert completion.text == answered(tokenizer, text, [])[2].text


def test_a_stop_string_before_the_mark_or_within_a_call_ends_it(tmp_path: Path) -> None:
    template = TEMPLATES["hermes"]
    tokenizer = tokenizer_with(tmp_path / "t.gguf", template, control=marks_of(template))
    layout = layout_of(template)
    assert layout is not None
    one = layout.written([WEATHER])
    said, calls, completion = answered(tokenizer, f"Hm. END{one}", ["END"])
    assert (said, calls, completion.text) == ("Hm. ", [], "Hm. ")
    said, calls, _ = answered(tokenizer, f"Hm. {one}", ["Rome"])
    assert (said, calls) == ("Hm. ", [("get_weather", '{"city": "')])
