"""Answers held to a schema, an expression or a grammar: whatever the model would rather say."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from m40llm import LLM, SamplingParams
from m40llm.device.decoder import FORMS
from m40llm.engine.engine import Engine
from m40llm.errors import RequestError
from m40llm.llm.constraint import Constraints
from m40llm.testing import write_tiny_gguf

pytest.importorskip("llguidance", reason="no constraints: pip install llguidance")

SCHEMA = {
    "type": "object",
    "properties": {
        "n": {"type": "integer", "minimum": 0, "maximum": 99},
        "yes": {"type": "boolean"},
    },
    "required": ["n", "yes"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},  # of which random weights make no end
}


@pytest.fixture(scope="module", params=["spm", "bpe"])
def llm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    """Random weights, more logits than the tokenizer has tokens."""
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_tiny_gguf(path, tokenizer=request.param, vocab_size=500)
    with LLM.load(path, device="cpu") as llm:
        yield llm


def answer(llm: LLM, **fields: Any) -> str:
    completion = llm.generate("ab", SamplingParams(max_tokens=100, **fields))
    assert completion.stop_reason == "stop"
    return completion.text


@pytest.mark.parametrize("seed", range(5))
def test_json(llm: LLM, seed: int) -> None:
    text = answer(llm, seed=seed, json_schema=SCHEMA)
    found = json.loads(text)
    assert set(found) == {"n", "yes"}
    assert 0 <= found["n"] <= 99
    assert isinstance(found["yes"], bool)
    assert answer(llm, seed=seed, json_schema=json.dumps(SCHEMA)) == text


@pytest.mark.parametrize("vocab_size", [479, 480, 481])
def test_a_mask_has_a_bit_a_token(tmp_path: Path, vocab_size: int) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", vocab_size=vocab_size)
    with LLM.load(path, device="cpu") as llm:
        constraint = Constraints(llm.tokenizer, vocab_size).of(SamplingParams(regex="[ab]+"))
        assert constraint is not None
        for each in (constraint, constraint.fork()):
            assert each.mask().shape == (15 + (vocab_size > 480),)


@pytest.mark.parametrize(
    "fields", [{"temperature": 0}, {"seed": 3, "temperature": 5.0, "top_k": 0}]
)
def test_regex(llm: LLM, fields: dict[str, Any]) -> None:
    pattern = r"[a-f]{3}-(x|yz)\d{2,4}"
    assert re.fullmatch(pattern, answer(llm, regex=pattern, **fields))


def test_lark(llm: LLM) -> None:
    text = answer(llm, seed=1, lark='start: "yes" | "no" ", " REASON\nREASON: /[a-z ]{5}/')
    assert text == "yes" or re.fullmatch("no, [a-z ]{5}", text)


def test_mirostat_and_penalties(llm: LLM) -> None:
    fields = {"seed": 2, "mirostat": 2, "repetition_penalty": 1.5}
    assert re.fullmatch("(ab|c){4}", answer(llm, regex="(ab|c){4}", **fields))


def test_speculation_gives_the_same(llm: LLM) -> None:
    fields: dict[str, Any] = {"temperature": 0, "regex": "(abcd){6}"}
    plain = answer(llm, **fields)
    for proposes in ("ngram", llm.path):  # the model itself as draft
        with LLM.load(llm.path, device="cpu", speculate=proposes) as faster:
            assert answer(faster, **fields) == plain == "abcd" * 6


def test_cut_short(llm: LLM) -> None:
    completion = llm.generate("ab", SamplingParams(max_tokens=2, regex="[a-c]{50}"))
    assert completion.stop_reason == "length"
    assert re.fullmatch("[a-c]+", completion.text)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"regex": "(["}, "regex: .*unclosed character class"),
        ({"lark": "start: nobody"}, "lark: .*nobody"),
        ({"json_schema": "{"}, "json_schema: no JSON"),
        ({"json_schema": {"type": "person"}}, "json_schema: .*person"),
        ({"json_schema": "[1]"}, "json_schema: expected an object"),
        ({"json_schema": {"a": object()}}, "json_schema: no JSON"),
    ],
)
def test_what_is_none(llm: LLM, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=f"(?s){message}"):
        llm.generate("ab", SamplingParams(**fields))
    assert answer(llm, regex="a{2}") == "aa"  # and the model goes on


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"regex": "a", "lark": "b"}, "lark: expected no regex beside it"),
        ({"regex": 3}, "regex: expected a text, got int"),
        ({"json_schema": [1]}, "json_schema: expected a text or a mapping, got list"),
        ({"regex": "a", "ignore_eos": True}, "regex: expected ignore_eos False"),
    ],
)
def test_fields_that_do_not_go_together(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        SamplingParams(**fields)


def test_all_that_may_come_is_banned(llm: LLM) -> None:
    banned = {token_id: -float("inf") for token_id in llm.tokenizer.ids_containing(["a"])}
    with pytest.raises(RequestError, match="every token that may come next is banned"):
        llm.generate("xy", SamplingParams(regex="a{3}", logit_bias=banned))


def test_without_the_library(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(RequestError, match="pip install llguidance"):
        llm.generate("ab", SamplingParams(regex="a"))


@pytest.mark.parametrize("device", ["emulator", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_on_a_device_with_steps_of_its_own(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each form says what the host's loop says, without that loop."""
    shape = {"head_dim": 64, "tensor_type": "F16"}  # the program of test_decode_step.py
    path = write_tiny_gguf(tmp_path / "tiny.gguf", n_layers=1, **shape)
    asked: list[dict[str, Any]] = [
        {"temperature": 0, "regex": "b{2}c"},
        {"seed": 3, "temperature": 1.5, "repetition_penalty": 1.2, "json_schema": SCHEMA},
    ]
    with LLM.load(path, device=device, decode="host", max_seq_len=64) as llm:
        expected = [answer(llm, **fields) for fields in asked]
        monkeypatch.setattr(Engine, "_decode", None)
        for form in FORMS:
            llm._open_engine().decode_form = form
            assert [answer(llm, **fields) for fields in asked] == expected
    assert expected[0] == "bbc"


@pytest.mark.parametrize("field", [{"regex": "\ud800"}, {"lark": 'start: "\ud800"'}])
def test_what_is_no_text_is_refused(llm: LLM, field: dict[str, str]) -> None:
    with pytest.raises(RequestError, match="surrogate"):
        answer(llm, **field)
