"""Decode on the device: each form gives the same tokens, and those of the host's loop."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from m40llm import LLM, SamplingParams
from m40llm.cli import options
from m40llm.device.decoder import FORMS
from m40llm.engine.decode_step import DECODE_CHOICES
from m40llm.errors import RequestError
from m40llm.testing import write_tiny_gguf

DEVICES = [pytest.param("emulator"), pytest.param("cuda", marks=pytest.mark.gpu)]
MODELS: dict[str, dict[str, Any]] = {
    "F16": {"tensor_type": "F16"},
    "Q8_0": {"tensor_type": "Q8_0", "tied": True},  # it and qwen2: programs of
    "qwen2": {"arch": "qwen2", "tensor_type": "F16"},  # test_decode_program.py
}
PROMPT = [5, 7, 11]


@pytest.fixture(scope="module", params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=MODELS)
def llm(request: pytest.FixtureRequest, device: str, tmp_path_factory: Any) -> Iterator[LLM]:
    path: Path = tmp_path_factory.mktemp("models") / "tiny.gguf"
    shape = {"head_dim": 64, "context_length": 32, **MODELS[request.param]}
    write_tiny_gguf(path, **shape)
    with LLM.load(path, device=device, decode="host") as llm:
        assert not isinstance(llm._open_engine().model.decoder, str)
        yield llm


def answers(llm: LLM, form: str, **params: Any) -> list[tuple[int, float]]:
    engine = llm._open_engine()
    engine.decode_form = form  # type: ignore[assignment]
    steps = engine.generate(PROMPT, SamplingParams(**params))
    return [(step.token.token_id, step.token.logprob) for step in steps]


def ids(found: list[tuple[int, float]]) -> list[int]:
    return [token_id for token_id, _ in found]


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0},
        {"temperature": 0, "repetition_penalty": 1.5, "presence_penalty": 0.25},
        {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "seed": 7},
        {"temperature": 1.0, "top_k": 0, "seed": 3, "logit_bias": {3: 2.0, 4: -1.5}},
    ],
    ids=["greedy", "penalties", "top_k and top_p", "bias"],
)
def test_forms_agree(llm: LLM, params: dict[str, Any]) -> None:
    """Bit for bit among themselves; with the host, the tokens (no near-tie in these)."""
    params = {**params, "max_tokens": 6, "ignore_eos": True}
    first = answers(llm, "eager", **params)
    assert answers(llm, "graph", **params) == first
    assert answers(llm, "persistent", **params) == first
    host = answers(llm, "host", **params)
    assert ids(host) == ids(first)
    assert [logprob for _, logprob in first] == pytest.approx([v for _, v in host], abs=0.02)


def test_why_an_answer_ends(llm: LLM) -> None:
    for form in FORMS:
        llm._open_engine().decode_form = form
        whole = llm.generate(PROMPT, SamplingParams(temperature=0, ignore_eos=True))
        assert whole.stop_reason == "context"
        assert len(PROMPT) + len(whole.ids) == llm.max_seq_len + 1
        stop = whole.ids[4]
        params = SamplingParams(temperature=0, ignore_eos=True, stop_ids=(stop,))
        part = llm.generate(PROMPT, params)
        assert part.stop_reason == "stop"
        assert part.ids == whole.ids[: whole.ids.index(stop) + 1]


def test_an_answer_that_is_not_wanted_any_more(llm: LLM) -> None:
    """Closed in the middle, the device is idle again, and the next request is answered."""
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    for form in FORMS:
        llm._open_engine().decode_form = form
        expected = llm.generate(PROMPT, params).ids
        with llm.stream(PROMPT, params) as stream:
            assert next(stream).token_id == expected[0]
            assert next(stream).token_id == expected[1]
        assert llm.generate(PROMPT, params).ids == expected


def test_ctrl_c(llm: LLM) -> None:
    """The device stops, too: what is asked next is answered."""
    engine = llm._open_engine()
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    for form in FORMS:
        engine.decode_form = form
        expected = [step.token.token_id for step in engine.generate(PROMPT, params)]
        steps = engine.generate(PROMPT, params)
        assert [next(steps).token.token_id for _ in range(3)] == expected[:3]
        with pytest.raises(KeyboardInterrupt):
            steps.throw(KeyboardInterrupt)  # type: ignore[attr-defined]
        assert [step.token.token_id for step in engine.generate(PROMPT, params)] == expected


def test_what_the_device_cannot_is_done_by_the_host(llm: LLM) -> None:
    llm._open_engine().decode_form = "persistent"
    few = {"max_tokens": 3, "ignore_eos": True}
    found = llm.generate(PROMPT, SamplingParams(temperature=0, logprobs=2, **few))
    assert [len(token.top) for token in found.logprobs or ()] == [2, 2, 2]
    typical = SamplingParams(temperature=1, typical_p=0.5, seed=1, **few)
    assert len(llm.generate(PROMPT, typical).ids) == 3


def test_recovers(llm: LLM) -> None:
    """After a failure that left counters anywhere, the next request is answered as ever."""
    engine = llm._open_engine()
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    for form in FORMS:
        engine.decode_form = form
        expected = llm.generate(PROMPT, params).ids
        decoder: Any = engine.model.decoder
        state, card = decoder._state, decoder._card
        card.write(state.arrived, card.read(state.arrived) + 1)
        card.write(state.n_left, card.read(state.n_left) + 5)
        engine._has_failed = True
        assert llm.generate(PROMPT, params).ids == expected


def test_what_is_refused(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    with pytest.raises(RequestError, match="decode: expected auto, host, eager, graph, persistent"):
        LLM.load(path, device="cpu", decode="fast")
    with pytest.raises(RequestError, match="decode: expected 'host' on device 'cpu', got 'graph'"):
        LLM.load(path, device="cpu", decode="graph")


def test_the_options_choices_are_these() -> None:
    assert options._DECODE_CHOICES == DECODE_CHOICES
