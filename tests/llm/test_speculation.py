"""Answers with proposals are those without: tokens, ends, seeds; and what is refused."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m40llm import LLM, Completion, SamplingParams
from m40llm.cli import options
from m40llm.engine import draft, ngram
from m40llm.engine.speculate import MAX_PROPOSALS
from m40llm.errors import ModelFileError, RequestError
from m40llm.testing import write_tiny_gguf

PROMPTS = {
    "letters": [1, 70, 80, 90],
    "loop": [1, *[40, 41, 42, 43] * 6],
    "one": [9],
}
# A model of noise does not repeat what it reads; a bias makes it go round among few tokens.
FEW = dict.fromkeys((40, 41, 42, 43), 20.0)
REQUESTS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "few": {"temperature": 0, "logit_bias": FEW},
    "repetition": {"temperature": 0, "repetition_penalty": 1.3, "logit_bias": FEW},
    "counts": {"temperature": 0, "presence_penalty": 0.5, "frequency_penalty": 0.7},
}
SAMPLED: dict[str, dict[str, Any]] = {
    "sampled": {"seed": 3, "logit_bias": FEW},
    "everything": {"seed": 4, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "temperature": 1.5},
    "xtc": {"seed": 5, "xtc_probability": 0.5, "logit_bias": FEW, "typical_p": 0.9},
    "dry": {"seed": 6, "dry_multiplier": 1.0, "dry_breakers": (), "logit_bias": FEW},
    "mirostat": {"seed": 7, "mirostat": 2, "logit_bias": FEW},
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("m") / "tiny.gguf")


@pytest.fixture(scope="module")
def small(path: Path) -> Path:
    """Another model of the vocabulary, which is right now and then."""
    return write_tiny_gguf(path.with_name("small.gguf"), n_layers=1, seed=0, context_length=64)


@pytest.fixture(scope="module")
def plain(path: Path) -> LLM:
    return LLM.load(path, device="cpu")


Load = Callable[..., LLM]


@pytest.fixture(scope="module", params=["ngram", "itself", "another"])
def load(request: pytest.FixtureRequest, path: Path, small: Path) -> Load:
    """The model with a proposer: the text, the same model, or another one."""
    speculate = {"ngram": "ngram", "itself": path, "another": small}[request.param]
    return lambda **more: LLM.load(path, device="cpu", speculate=speculate, **more)


def ask(llm: LLM, prompt: list[int], **params: Any) -> Completion:
    return llm.generate(prompt, SamplingParams(**{"ignore_eos": True, "max_tokens": 40, **params}))


@cache
def of_plain(llm: LLM, prompt: str, request: str) -> list[int]:
    """What the model answers without proposals, worked out once."""
    return ask(llm, PROMPTS[prompt], **(REQUESTS | SAMPLED)[request]).ids


@pytest.mark.parametrize("k", [None, 1, 3, MAX_PROPOSALS])
def test_greedy_answers_are_the_plain_ones(load: Load, plain: LLM, k: int | None) -> None:
    with load(speculate_tokens=k) as llm:
        for name, prompt in PROMPTS.items():
            for request, params in REQUESTS.items():
                assert ask(llm, prompt, **params).ids == of_plain(plain, name, request)


@pytest.mark.parametrize("request_name", SAMPLED)
def test_sampled_answers_of_ngram_are_the_plain_ones(
    path: Path, plain: LLM, request_name: str
) -> None:
    """Of the same seed: nothing is drawn but what is drawn without proposals."""
    with LLM.load(path, device="cpu", speculate="ngram", speculate_tokens=4) as llm:
        for name, prompt in PROMPTS.items():
            ids = ask(llm, prompt, **SAMPLED[request_name]).ids
            assert ids == of_plain(plain, name, request_name)


@pytest.mark.parametrize("params", SAMPLED.values(), ids=SAMPLED)
def test_same_seed_same_answer(load: Load, params: dict[str, Any]) -> None:
    with load(speculate_tokens=3) as llm:
        first = ask(llm, PROMPTS["loop"], **params).ids
        ask(llm, PROMPTS["one"], **params)
        assert ask(llm, PROMPTS["loop"], **params).ids == first


def test_sampling_with_a_draft_model_has_the_models_law(path: Path, small: Path) -> None:
    """The first two tokens behind the prompt's first, over 1,000 seeds, against the logits."""
    params = {"top_k": 3, "temperature": 4.0, "top_p": 1.0, "min_p": 0.0, "max_tokens": 2}
    prompt, n = [1, 70, 80], 1000
    with LLM.load(path, device="cpu", speculate=small) as llm:
        answers = [tuple(ask(llm, prompt, seed=seed, **params).ids) for seed in range(n)]
        first = law_of(llm.logits(prompt)[-1])
        law = {
            (a, b): p * q
            for a, p in first.items()
            for b, q in law_of(llm.logits([*prompt, a])[-1]).items()
        }
    assert set(answers) <= set(law)
    square = sum((answers.count(pair) - n * p) ** 2 / (n * p) for pair, p in law.items())
    assert square < 31.8  # of 8 degrees of freedom at 1e-4


def law_of(logits: np.ndarray) -> dict[int, float]:
    """top_k = 3 at temperature 4."""
    best = np.argsort(-logits)[:3]
    weights = np.exp((logits[best] - logits[best[0]]).astype(np.float64) / 4.0)
    return dict(zip(best.tolist(), (weights / weights.sum()).tolist(), strict=True))


def test_what_was_proposed_and_accepted_is_told(load: Load, plain: LLM) -> None:
    with load(speculate_tokens=4) as llm:
        told = ask(llm, PROMPTS["loop"], temperature=0, logit_bias={40: 50.0}).timings
        assert 0 < told.accepted_tokens <= told.proposed_tokens
        assert told.accepted_tokens < told.generated_tokens
    told = ask(plain, PROMPTS["loop"], temperature=0).timings
    assert (told.proposed_tokens, told.accepted_tokens) == (0, 0)


def test_a_model_accepts_all_that_it_proposes_itself(path: Path) -> None:
    with LLM.load(path, device="cpu", speculate=path, speculate_tokens=4) as llm:
        for params in ({"temperature": 0}, {"seed": 1}):
            told = ask(llm, PROMPTS["letters"], **params).timings
            assert told.accepted_tokens == told.proposed_tokens > 20


@pytest.fixture
def always(load: Load) -> Iterator[LLM]:
    """Whose answer is one token over and over, so that whole runs are accepted."""
    with load(speculate_tokens=7) as llm:
        yield llm


ALWAYS = {"temperature": 0, "logit_bias": {104: 60.0}}  # "e", as a byte


@pytest.mark.parametrize("n", range(1, 20))
def test_max_tokens_inside_a_run(always: LLM, n: int) -> None:
    answer = ask(always, PROMPTS["loop"], max_tokens=n, **ALWAYS)
    assert answer.ids == [104] * n
    assert answer.stop_reason == "length"
    assert_cache_ends_before_the_last_token(always, answer)


def test_stop_tokens_inside_a_run(load: Load, plain: LLM) -> None:
    """One that would have come anyway, at any place of a run."""
    whole = ask(plain, PROMPTS["letters"], temperature=0).ids
    with load(speculate_tokens=7) as llm:
        for stop in sorted(set(whole)):
            params = {"temperature": 0, "stop_ids": [stop]}
            answer = ask(llm, PROMPTS["letters"], **params)
            assert answer.ids == whole[: whole.index(stop) + 1]
            assert answer.stop_reason == "stop"
            assert_cache_ends_before_the_last_token(llm, answer)


def test_stop_strings_inside_a_run(load: Load, plain: LLM) -> None:
    whole = ask(plain, PROMPTS["letters"], temperature=0).text
    with load(speculate_tokens=7) as llm:
        for at in range(0, len(whole) - 2, 3):
            params = {"temperature": 0, "stop": whole[at : at + 2]}
            answer = ask(llm, PROMPTS["letters"], **params)
            expected = ask(plain, PROMPTS["letters"], **params)
            assert (answer.text, answer.ids) == (expected.text, expected.ids)
            assert answer.stop_reason == "stop"
            assert_cache_ends_before_the_last_token(llm, answer)


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_the_contexts_end(load: Load, plain: LLM, prompt: list[int]) -> None:
    """Beyond which nothing is proposed; the shorter draft model stops to propose before."""
    for k in (1, 7):
        with load(speculate_tokens=k) as llm:
            answer = ask(llm, prompt, max_tokens=None, **ALWAYS)
            assert answer.ids == ask(plain, prompt, max_tokens=None, **ALWAYS).ids
            assert answer.stop_reason == "context"
            assert len(prompt) + len(answer.ids) == llm.max_seq_len + 1
    with load(max_seq_len=1) as llm:
        assert len(ask(llm, [5], max_tokens=None).ids) == 1


def assert_cache_ends_before_the_last_token(llm: LLM, answer: Completion) -> None:
    engine = llm._open_engine()
    assert engine._cached_ids == (answer.prompt_ids + answer.ids)[:-1]
    assert llm.transformer.kv.seq_lens[0] == len(engine._cached_ids)


def test_a_closed_stream_leaves_a_sound_cache(load: Load, plain: LLM) -> None:
    """What the conversation goes on from is what was said."""
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    prompt = PROMPTS["loop"]
    with load(speculate_tokens=7) as llm:
        engine = llm._open_engine()
        steps = engine.generate(prompt, SamplingParams(**ALWAYS))
        said = [next(steps).token.token_id for _ in range(3)]
        steps.close()
        assert engine._cached_ids == [*prompt, *said[:-1]]
        after = [*prompt, *said, 50]
        again = [s.token.token_id for s in engine.generate(after, params, reuse_prefix=True)]
    assert again == plain.generate(after, params).ids


def test_logprobs_are_those_of_the_plain_answer(load: Load, plain: LLM) -> None:
    params = {"temperature": 0, "logprobs": 2}
    expected = ask(plain, PROMPTS["loop"], **params).logprobs
    with load(speculate_tokens=4) as llm:
        got = ask(llm, PROMPTS["loop"], **params).logprobs
    assert got is not None
    assert expected is not None
    assert [t.logprob for t in got] == pytest.approx([t.logprob for t in expected], abs=1e-4)


@pytest.mark.parametrize(
    ("keywords", "told"),
    [
        ({"speculate": "ngram", "speculate_tokens": 0}, "speculate_tokens: expected 1 to 64"),
        ({"speculate": "ngram", "speculate_tokens": 65}, "expected 1 to 64, got 65"),
        ({"speculate": "ngram", "speculate_tokens": 2.5}, "expected 1 to 64"),
        ({"speculate": "ngram", "speculate_tokens": True}, "expected 1 to 64"),
        ({"speculate_tokens": 4}, "speculate_tokens: expected speculate beside it"),
        ({"speculate": 4}, "speculate: expected 'ngram' or a model file, got int"),
        ({"speculate": "nowhere.gguf"}, "nowhere.gguf"),
        (
            {"speculate": "ngram", "decode": "persistent"},
            "decode: expected 'host' or 'auto' beside",
        ),
    ],
)
def test_refused(path: Path, keywords: dict[str, Any], told: str) -> None:
    with pytest.raises(RequestError, match=told):
        LLM.load(path, device="cpu", **keywords)


@pytest.mark.parametrize("decode", [None, "auto", "host"])
def test_proposals_are_checked_in_the_hosts_loop(path: Path, decode: str | None) -> None:
    with LLM.load(path, device="emulator", speculate="ngram", decode=decode) as llm:
        assert llm.decode_form == "host"


def test_another_vocabulary_is_refused(path: Path, tmp_path: Path) -> None:
    longer = write_tiny_gguf(tmp_path / "longer.gguf", vocab_size=512)
    with pytest.raises(RequestError, match=r"same vocabulary; it has 512 tokens, the model has"):
        LLM.load(path, device="cpu", speculate=longer)
    spm, bpe = (
        write_tiny_gguf(tmp_path / f"{kind}.gguf", vocab_size=512, tokenizer=kind)
        for kind in ("spm", "bpe")
    )
    with pytest.raises(RequestError, match="its token 0 is 'Ā', the model's '<unk>'"):
        LLM.load(spm, device="cpu", speculate=bpe)


def test_a_broken_draft_model_is_named_before_weights_are_read(path: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ModelFileError, match="the file ends at"):
        LLM.load(path, device="cpu", speculate=cut)


def test_the_command_lines_figures_are_the_codes() -> None:
    assert options.Speculate is not None
    (option,) = options.SpeculateTokens.__metadata__
    assert (option.min, option.max) == (1, MAX_PROPOSALS)
    defaults = f"{ngram.N_TOKENS} of ngram, {draft.N_TOKENS} of a model"
    assert defaults in " ".join(option.help.split())
