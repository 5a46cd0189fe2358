"""The engine on tiny models: stops, limits, seeds, cancelling, prefix reuse, bad requests."""

from pathlib import Path

import numpy as np
import pytest

from m40llm import LLM, SamplingParams
from m40llm.engine.engine import Engine
from m40llm.errors import ModelFileError, RequestError
from m40llm.testing import write_tiny_gguf

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
PROMPT = [1, 70, 80, 90]


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    return LLM.load(write_tiny_gguf(tmp_path_factory.mktemp("m") / "tiny.gguf"))


@pytest.fixture
def engine(llm: LLM) -> Engine:
    return Engine(llm._open_engine().model, llm.tokenizer.stop_ids)


def ids_of(engine: Engine, params: SamplingParams, prompt: list[int] = PROMPT) -> list[int]:
    return [step.token.token_id for step in engine.generate(prompt, params)]


def test_greedy_is_the_argmax_of_the_logits(engine: Engine) -> None:
    ids = ids_of(engine, GREEDY)
    logits = np.concatenate(list(engine.logits(PROMPT + ids)))
    assert len(ids) == 12
    assert ids == logits[len(PROMPT) - 1 : -1].argmax(axis=1).tolist()


def test_last_step_says_why(engine: Engine) -> None:
    steps = list(engine.generate(PROMPT, GREEDY))
    assert [step.stop_reason for step in steps] == [None] * 11 + ["length"]


def test_stop_ids_end_the_answer_and_are_part_of_it(engine: Engine) -> None:
    plain = ids_of(engine, GREEDY)
    stop_at = plain[3]
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, stop_ids=[stop_at])
    steps = list(engine.generate(PROMPT, params))
    assert [s.token.token_id for s in steps] == plain[: plain.index(stop_at) + 1]
    assert steps[-1].stop_reason == "stop"


def test_the_models_own_stop_ids(llm: LLM, engine: Engine) -> None:
    plain = ids_of(engine, GREEDY)
    stopping = Engine(engine.model, frozenset({plain[2]}))
    assert ids_of(stopping, SamplingParams(temperature=0)) == plain[: plain.index(plain[2]) + 1]
    assert ids_of(stopping, GREEDY) == plain


def test_ends_at_the_contexts_end(engine: Engine) -> None:
    endless = SamplingParams(temperature=0, ignore_eos=True)
    steps = list(engine.generate(PROMPT, endless))
    assert steps[-1].stop_reason == "context"
    assert len(PROMPT) + len(steps) == engine.max_seq_len + 1  # the last one needs no room


def test_a_full_prompt_still_gives_one_token(engine: Engine) -> None:
    prompt = [5] * engine.max_seq_len
    assert [s.stop_reason for s in engine.generate(prompt, GREEDY)] == ["context"]


def test_seeds(engine: Engine) -> None:
    def drawn(seed: int | None) -> list[int]:
        wild = SamplingParams(
            temperature=5.0,
            top_k=0,
            top_p=1.0,
            min_p=0.0,
            max_tokens=12,
            ignore_eos=True,
            seed=seed,
        )
        return ids_of(engine, wild)

    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)
    assert drawn(None) != drawn(None)


def test_prefix_reuse_gives_the_same_tokens(engine: Engine) -> None:
    expected = ids_of(engine, GREEDY, [*PROMPT, 33, 44])
    ids_of(engine, GREEDY, PROMPT)
    reused = engine.generate([*PROMPT, 33, 44], GREEDY, reuse_prefix=True)
    assert [step.token.token_id for step in reused] == expected


def test_an_abandoned_request_does_no_harm_to_the_next(engine: Engine) -> None:
    expected = ids_of(engine, GREEDY)
    steps = engine.generate([9, 8, 7], GREEDY)
    next(steps)
    steps.close()
    reused = engine.generate(PROMPT, GREEDY, reuse_prefix=True)
    assert [step.token.token_id for step in reused] == expected


def test_logprobs(engine: Engine) -> None:
    params = SamplingParams(temperature=0, max_tokens=2, logprobs=3, ignore_eos=True)
    for step in engine.generate(PROMPT, params):
        top = step.token.top
        assert top[0] == (step.token.token_id, step.token.logprob)
        assert [p for _, p in top] == sorted((p for _, p in top), reverse=True)
        assert len(top) == 3
        assert sum(np.exp(p) for _, p in top) <= 1


@pytest.mark.parametrize(
    ("prompt", "fragment"),
    [
        ([], "empty"),
        ([-1], "-1"),
        ([10**6], "1000000"),
        (["a"], "token ids"),
        (b"ab", "token ids"),
        ([5] * 129, "129 tokens; the context holds 128"),
    ],
)
def test_bad_prompts(engine: Engine, prompt: list[int], fragment: str) -> None:
    with pytest.raises(RequestError, match=fragment):
        next(engine.generate(prompt, GREEDY))


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(stop_ids=[10**6]),
        SamplingParams(logit_bias={10**6: 1.0}),
        SamplingParams(logprobs=10**6),
    ],
)
def test_ids_beyond_the_vocabulary(engine: Engine, params: SamplingParams) -> None:
    with pytest.raises(RequestError, match="expected"):
        next(engine.generate(PROMPT, params))


def test_nan_weights_are_the_files_fault(tmp_path: Path) -> None:
    """A model whose weights overflow says so instead of answering nonsense."""
    path = write_tiny_gguf(tmp_path / "bad.gguf", tensor_type="F32")
    raw = bytearray(path.read_bytes())
    raw[-4000:] = np.full(1000, np.nan, np.float32).tobytes()
    path.write_bytes(raw)
    with LLM.load(path) as llm, pytest.raises(ModelFileError, match="not finite"):
        llm.generate([1, 2, 3])
