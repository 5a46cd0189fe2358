"""The cache, steps of one's own, and two models compared."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from m40llm import SamplingParams
from m40llm.errors import RequestError
from m40llm.research import LLM, compare

IDS = [5, 9, 200, 31, 77, 8, 14, 3]


def test_steps_are_the_greedy_answer(llm: LLM) -> None:
    greedy = SamplingParams(temperature=0, max_tokens=10)
    steps = list(llm.steps(IDS, max_tokens=10))
    assert [step.token_id for step in steps] == llm.generate(IDS, greedy).ids
    np.testing.assert_array_equal(steps[0].logits, llm.logits(IDS)[-1])


def test_a_sampler_of_mine(llm: LLM) -> None:
    seen: list[list[int]] = []

    def second(logits: Any, ids: list[int]) -> Any:
        seen.append(list(ids))
        return logits.argsort()[-2]  # a NumPy integer is a token, too

    steps = list(llm.steps(IDS, second, max_tokens=4))
    assert seen == [[*IDS, *(s.token_id for s in steps[:n])] for n in range(4)]
    assert all(step.logits.argsort()[-2] == step.token_id for step in steps)


def test_steps_end_with_the_context_and_with_a_stop_token(loaded: Callable[..., LLM]) -> None:
    llm = loaded(context_length=16)
    [stop, *_] = llm.transformer.hp.vocab_size - 1, 0
    llm._open_engine().stop_ids = frozenset({stop})
    assert len(list(llm.steps(IDS, lambda logits, ids: 7, max_tokens=99))) == 16 - len(IDS) + 1
    assert len(list(llm.steps(IDS, lambda logits, ids: stop, max_tokens=99))) == 1


@pytest.mark.parametrize("token", [-1, 10**6, 1.0, None, "a"])
def test_what_no_sampler_may_choose(token: Any, llm: LLM) -> None:
    with pytest.raises(RequestError, match="choose: expected a token id, 0 to"):
        list(llm.steps(IDS, lambda logits, ids: token))
    with pytest.raises(RequestError, match="max_tokens: expected at least 1"):
        list(llm.steps(IDS, max_tokens=0))


def test_the_cache_is_what_a_trace_has(llm: LLM) -> None:
    with llm.trace(IDS, keep="blk.1.v") as t:
        pass
    next(llm.steps(IDS))
    k, v = llm.cache.read(1)
    assert k.shape == v.shape == (2, len(IDS), 16)
    np.testing.assert_array_equal(v.swapaxes(0, 1), t["blk.1.v"])
    assert llm.cache.ids == IDS


def test_a_changed_cache_is_what_the_next_token_sees(llm: LLM) -> None:
    plain = next(llm.steps(IDS)).logits
    k, v = llm.cache.read(0)
    llm.cache.write(0, k, v)
    np.testing.assert_array_equal(next(llm.steps(IDS)).logits, plain)
    llm.cache.write(0, k[:, 2], 3 * v[:, 2], at=2)
    assert not np.array_equal(next(llm.steps(IDS)).logits, plain)
    np.testing.assert_array_equal(llm.cache.read(0)[1][:, 2], 3 * v[:, 2])
    np.testing.assert_array_equal(llm.logits(IDS)[-1], plain)  # begins anew


def test_fork_and_trim(llm: LLM) -> None:
    next(llm.steps(IDS))
    aside = llm.cache.fork()
    on = [step.token_id for step in llm.steps([*IDS, 42])]
    llm.generate([1, 2, 3])
    llm.cache.restore(aside)
    assert llm.cache.ids == IDS
    assert [step.token_id for step in llm.steps([*IDS, 42])] == on
    llm.cache.trim(3)
    assert llm.cache.ids == IDS[:3]
    assert llm.cache.read(0)[0].shape[1] == 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: c.trim(9), "cache.trim: expected 0 to 8, got 9"),
        (lambda c: c.trim(-1), "cache.trim: expected 0 to 8, got -1"),
        (lambda c: c.read(3), "cache: expected layer 0 to 2, got 3"),
        (lambda c: c.write(0, np.zeros(5), np.zeros(5)), "cache.write: "),
    ],
)
def test_what_the_cache_refuses(call: Callable[..., Any], message: str, llm: LLM) -> None:
    next(llm.steps(IDS))
    with pytest.raises(RequestError, match=message):
        call(llm.cache)


def test_two_files_of_one_model(loaded: Callable[..., LLM]) -> None:
    exact, rough = loaded(n_embd=256, n_ff=256), loaded(n_embd=256, n_ff=256, tensor_type="Q4_K")
    same = compare(exact, exact, IDS)
    assert same.sites == exact.sites()
    assert not same.most.any()
    found = compare(exact, rough, IDS, "blk.*.resid_post")
    assert found.sites == ["blk.0.resid_post", "blk.1.resid_post"]
    assert (found.rms > 0).all()
    assert (found.rms <= found.most).all()
    assert str(found).splitlines()[2].split()[0] == "blk.1.resid_post"
    with pytest.raises(RequestError, match=r"compare: embd is \[8, 256\] in a, \[8, 64\] in b"):
        compare(exact, loaded(), IDS)
