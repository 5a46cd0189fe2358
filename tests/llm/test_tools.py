"""Which format a template speaks, and what the model is told in it."""

import json
from pathlib import Path
from typing import Any

import pytest
from tool_models import (
    CHATML,
    GRANITE,
    LLAMA,
    MAGISTRAL,
    NEMO,
    PHI,
    QWEN,
    SMOLLM3,
    TEMPLATES,
    TOOLS,
    WEATHER,
    tokenizer_with,
)

from m40llm.errors import RequestError
from m40llm.llm.tools import tool_format, tools_of
from m40llm.llm.tools.layouts import HERMES, LAYOUTS, layout_of
from m40llm.text import Tokenizer

STOP = {"name": "stop", "parameters": {"type": "object", "properties": {}}}
ARGUMENTS = '{"city": "Rome", "days": 3}'
ASKED = {"role": "user", "content": "Rome?"}
CALLED = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {
            "id": "call_1",
            "type": "function",
            "function": {"name": "get_weather", "arguments": ARGUMENTS},
        }
    ],
}
ANSWERED = {"role": "tool", "tool_call_id": "call_1", "content": '{"t": 20}'}


# Which format.


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_template_tells_the_format(name: str, tmp_path: Path) -> None:
    found = tools_of(tokenizer_with(tmp_path / "tiny.gguf", TEMPLATES[name]))
    assert found is not None
    assert found.name == name


def test_granite_4_has_left_its_list() -> None:
    template = "{% if tools %}<|start_of_role|>{{ tools }}<tool_call></tool_call>{% endif %}"
    assert layout_of(template + "<|start_of_role|>assistant<|end_of_role|><|tool_call|>") is HERMES


def test_every_format_has_a_template_here() -> None:
    assert [layout.name for layout in LAYOUTS] == list(TEMPLATES)


@pytest.mark.parametrize(
    "template",
    [
        None,
        CHATML,
        "{{ tools }}",
        QWEN.replace("<tool_call>\\n{", "<tool_call>\\n<function="),  # Qwen3-Coder's XML
    ],
)
def test_no_tools(template: str | None, tmp_path: Path) -> None:
    tokenizer = tokenizer_with(tmp_path / "tiny.gguf", template)
    assert tools_of(tokenizer) is None
    with pytest.raises(
        RequestError, match=r"tools: the model's chat template has no tools.*hermes"
    ):
        tool_format(tokenizer)


# What the model is told.


def prompt(tokenizer: Tokenizer, messages: list[dict[str, Any]], **more: Any) -> str:
    variables = tool_format(tokenizer).prompt_variables(TOOLS, more.get("choice"), messages)
    return tokenizer.apply_chat_template(**variables)


def test_prompt_of_hermes(tmp_path: Path) -> None:
    text = prompt(tokenizer_with(tmp_path / "tiny.gguf", QWEN), [ASKED, CALLED, ANSWERED])
    assert '\n{"type": "function", "function": ' + json.dumps(STOP) + "}\n" in text
    assert text.endswith(
        "</tool_call><|im_end|>\n<|im_start|>user\nRome?<|im_end|>\n<|im_start|>assistant\n"
        f'<tool_call>\n{{"name": "get_weather", "arguments": {ARGUMENTS}}}\n</tool_call>'
        "<|im_end|>\n"
        '<|im_start|>user\n<tool_response>\n{"t": 20}\n</tool_response><|im_end|>\n'
        "<|im_start|>assistant\n"
    )


def test_no_tools_are_shown_where_none_may_be_called(
    tmp_path: Path,
) -> None:
    text = prompt(
        tokenizer_with(tmp_path / "tiny.gguf", QWEN), [ASKED, CALLED, ANSWERED], choice="none"
    )
    assert text.startswith("<|im_start|>user\nRome?")
    assert "<tool_call>\n" in text  # of what was said before


def test_prompt_of_llama(tmp_path: Path) -> None:
    tokenizer = tokenizer_with(tmp_path / "tiny.gguf", LLAMA)
    text = prompt(tokenizer, [ASKED, CALLED, ANSWERED])
    assert text.count('"name": "stop"') == 1
    assert f'{{"name": "get_weather", "parameters": {ARGUMENTS}}}<|eot_id|>' in text
    twice = {**CALLED, "tool_calls": [*CALLED["tool_calls"], *CALLED["tool_calls"]]}  # type: ignore[misc]
    with pytest.raises(RequestError, match="only supports single tool-calls"):
        prompt(tokenizer, [ASKED, twice, ANSWERED])
    empty = {"role": "assistant", "content": "Yes.", "tool_calls": []}
    assert "Yes.<|eot_id|>" in prompt(tokenizer, [ASKED, empty])


def test_prompt_of_mistral_has_short_ids(tmp_path: Path) -> None:
    tokenizer = tokenizer_with(tmp_path / "tiny.gguf", NEMO)
    text = prompt(tokenizer, [ASKED, CALLED, ANSWERED])
    assert '[AVAILABLE_TOOLS][{"type": "function"' in text
    short = text.partition('"id": "')[2][:9]
    assert short.isalnum()
    assert f'"call_id": "{short}"}}[/TOOL_RESULTS]' in text
    known = json.loads(json.dumps([CALLED, ANSWERED]).replace("call_1", "abcdeFG12"))
    assert '"call_id": "abcdeFG12"}' in prompt(tokenizer, [ASKED, *known])


def test_prompt_of_newer_mistrals(tmp_path: Path) -> None:
    text = prompt(tokenizer_with(tmp_path / "tiny.gguf", MAGISTRAL), [ASKED, CALLED, ANSWERED])
    assert f"[/INST][TOOL_CALLS]get_weather[ARGS]{ARGUMENTS}" in text


def test_prompt_of_templates_that_do_not_read_calls(
    tmp_path: Path,
) -> None:
    """They write contents alone: calls are put there as the model would have written them."""
    text = prompt(tokenizer_with(tmp_path / "tiny.gguf", GRANITE), [ASKED, CALLED, ANSWERED])
    assert f"available_tools<|end_of_role|>[{json.dumps(WEATHER)}, {json.dumps(STOP)}]" in text
    written = f'<|tool_call|>[{{"name": "get_weather", "arguments": {ARGUMENTS}}}]<|end_of_text|>'
    assert f"<|start_of_role|>assistant<|end_of_role|>{written}" in text

    text = prompt(tokenizer_with(tmp_path / "tiny.gguf", SMOLLM3), [ASKED, CALLED, ANSWERED])
    assert f"{WEATHER}\n" in text
    assert f'<tool_call>\n{{"name": "get_weather", "arguments": {ARGUMENTS}}}\n</tool_call>' in text


@pytest.mark.parametrize("system", ["", "Be brief."])
def test_prompt_of_phi(system: str, tmp_path: Path) -> None:
    told = [{"role": "system", "content": system}] if system else []
    text = prompt(tokenizer_with(tmp_path / "tiny.gguf", PHI), [*told, ASKED])
    said = system or "You are a helpful assistant with some tools."
    assert text == (
        f"<|system|>{said}<|tool|>{json.dumps([WEATHER, STOP])}<|/tool|><|end|>"
        "<|user|>Rome?<|end|><|assistant|>"
    )


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("id",), None, "tool_calls[0].id: expected a text, got None"),
        (("function",), "f", "tool_calls[0]: expected an object with a function"),
        (("function", "name"), "", "tool_calls[0].function.name: expected a text, got ''"),
        (("function", "arguments"), "{", "function.arguments: expected a JSON object as text"),
        (("function", "arguments"), "[1]", "function.arguments: expected a JSON object as text"),
    ],
)
def test_a_message_whose_calls_are_none(
    path: tuple[str, ...], value: Any, message: str, tmp_path: Path
) -> None:
    called = json.loads(json.dumps(CALLED))
    at = called["tool_calls"][0]
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    with pytest.raises(RequestError) as error:
        prompt(tokenizer_with(tmp_path / "tiny.gguf", QWEN), [ASKED, called])
    assert str(error.value).startswith("messages[1].tool_calls[0]")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("hello", "messages: expected a list, got str"),
        ([3], r"messages\[0\]: expected a mapping, got int"),
        ([ASKED, {**CALLED, "tool_calls": 3}], r"messages\[1\].tool_calls: expected a list"),
        ([{**CALLED, "content": [1]}], r"messages\[0\].content: expected a text, got list"),
    ],
)
def test_what_are_no_messages(messages: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=message):
        prompt(tokenizer_with(tmp_path / "tiny.gguf", GRANITE), messages)


def test_an_answer_to_no_call(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"messages\[1\].tool_call_id: .*'call_1'"):
        prompt(tokenizer_with(tmp_path / "tiny.gguf", QWEN), [ASKED, ANSWERED])


def test_a_template_of_its_own_for_tools(tmp_path: Path) -> None:
    """As files of Hermes 2 Pro and 3 have one, beside a plain one."""
    keys = {"tokenizer.chat_template.tool_use": QWEN}
    tokenizer = tokenizer_with(tmp_path / "tiny.gguf", CHATML, more_keys=keys)
    assert tool_format(tokenizer).name == "hermes"
    messages = [ASKED, CALLED, ANSWERED]
    assert prompt(tokenizer, messages) == prompt(
        tokenizer_with(tmp_path / "one.gguf", QWEN), messages
    )
    written = f'<tool_call>\n{{"name": "get_weather", "arguments": {ARGUMENTS}}}\n</tool_call>'
    assert prompt(tokenizer, messages, choice="none") == (
        f"<|im_start|>user\nRome?<|im_end|>\n<|im_start|>assistant\n{written}<|im_end|>\n"
        '<|im_start|>tool\n{"t": 20}<|im_end|>\n<|im_start|>assistant\n'
    )
    assert tokenizer.apply_chat_template([ASKED]) == (
        "<|im_start|>user\nRome?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_arguments_may_be_left_out(tmp_path: Path) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "stop", "arguments": ""}}
    text = prompt(
        tokenizer_with(tmp_path / "tiny.gguf", QWEN),
        [ASKED, {"role": "assistant", "tool_calls": [call]}],
    )
    assert '{"name": "stop", "arguments": {}}' in text
