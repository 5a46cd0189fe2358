"""Top-n-sigma, XTC, dynamic temperature, mirostat and the order of samplers, by hand."""

import math

import numpy as np
import pytest

from m40llm.engine import samplers, sampling
from m40llm.engine.candidates import Candidates
from m40llm.engine.sampling import Chain, choose
from m40llm.engine.sampling_params import SAMPLERS, SamplingParams

PROBABILITIES = np.array([0.1, 0.5, 0.15, 0.25])  # of tokens 0 to 3
LOGITS = np.log(PROBABILITIES).astype(np.float32)
EVERYTHING = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}


def candidates() -> Candidates:
    return Candidates.of(LOGITS)


@pytest.mark.parametrize(
    ("n", "ids"), [(0.0, [0, 1, 2, 3]), (0.5, [1]), (1.0, [1, 3]), (2.0, [1, 2, 3])]
)
def test_top_n_sigma(n: float, ids: list[int]) -> None:
    """Mean 1.925, deviation 1.5122: from 3.24, 2.49 and 0.98 on."""
    logits = np.array([0.0, 4.0, 1.1, 2.6], np.float32)
    assert samplers.top_n_sigma(Candidates.of(logits), n).ids.tolist() == ids


def test_top_n_sigma_does_not_count_banned_tokens() -> None:
    logits = np.array([0.0, 2.0, -np.inf], np.float32)  # deviation of 0 and 2: 1
    assert samplers.top_n_sigma(Candidates.of(logits), 1.5).ids.tolist() == [1]
    assert samplers.top_n_sigma(Candidates.of(logits), 2.0).ids.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("threshold", "ids"),
    [
        (0.2, [3, 2, 0]),  # 0.5 and 0.25 reach it: 0.25 is the last of them and stays
        (0.14, [2, 0]),
        (0.3, [1, 3, 2, 0]),  # only one reaches it: nothing to exclude
        (0.05, [0]),
        (0.51, [1, 3, 2, 0]),
    ],
)
def test_xtc_excludes_all_top_choices_but_the_last(threshold: float, ids: list[int]) -> None:
    assert samplers.xtc(candidates(), 1.0, threshold, 0.99).descending().ids.tolist() == ids


def test_xtc_happens_with_its_probability() -> None:
    assert samplers.xtc(candidates(), 0.3, 0.09, uniform=0.29).ids.size == 1
    assert samplers.xtc(candidates(), 0.3, 0.09, uniform=0.31).ids.size == 4
    assert samplers.xtc(candidates(), 0.0, 0.09, uniform=0.0).ids.size == 4


def test_xtc_has_a_random_number_of_its_own() -> None:
    """One in four draws excludes: then token 0, the one left at threshold 0.09, is certain."""
    params = SamplingParams(temperature=1, xtc_probability=0.25, xtc_threshold=0.09, **EVERYTHING)
    n = 2000
    drawn = [choose(LOGITS, params, [0] * at, [], seed=3) for at in range(n)]
    expected = 0.25 + 0.75 * 0.1
    deviation = math.sqrt(n * expected * (1 - expected))
    assert abs(drawn.count(0) - n * expected) < 4 * deviation


def test_dynamic_temperature_follows_the_entropy() -> None:
    """Entropy 1.2080 of at most log 4 = 1.3863: 0.8714 of the way from 0.5 to 1.5."""
    params = SamplingParams(temperature=1.0, dynatemp_range=0.5)
    got = samplers.temperature(candidates(), params)
    np.testing.assert_allclose(got.logits, LOGITS / (0.5 + 0.87137), rtol=1e-5)
    squared = SamplingParams(temperature=1.0, dynatemp_range=0.5, dynatemp_exponent=2.0)
    got = samplers.temperature(candidates(), squared)
    np.testing.assert_allclose(got.logits, LOGITS / (0.5 + 0.87137**2), rtol=1e-5)


def test_dynamic_temperature_of_certain_and_of_equal_tokens() -> None:
    params = SamplingParams(temperature=0.7, dynatemp_range=0.7)
    equal = samplers.temperature(Candidates.of(np.ones(4, np.float32)), params)
    np.testing.assert_allclose(equal.logits, 1 / 1.4)
    certain = np.array([0.0, 900.0, 0.0], np.float32)  # no entropy: temperature 0
    assert samplers.temperature(Candidates.of(certain), params).ids.tolist() == [1]


def test_mirostat_cuts_what_surprises_and_learns() -> None:
    """Surprises 1, 2, 2.737, 3.32 bits; mu begins at 2 * 1.1 = 2.2, so two tokens are left."""
    assert samplers.surprise_below(candidates(), 2.2).ids.tolist() == [1, 3]
    assert samplers.surprise_below(candidates(), 0.1).ids.tolist() == [1]
    params = SamplingParams(temperature=1, mirostat=2, mirostat_tau=1.1, mirostat_eta=0.5)
    chain = Chain(params, [], seed=0)
    mu = 2.2
    ids: list[int] = []
    for _ in range(20):
        left = [i for i in (1, 3, 2, 0) if -math.log2(PROBABILITIES[i]) <= mu] or [1]
        shares = PROBABILITIES[left] / PROBABILITIES[left].sum()
        uniform = sampling.uniform_at(0, len(ids))
        at = int((np.cumsum(shares) <= uniform).sum())
        token_id = chain.choose(LOGITS, ids)
        assert token_id == left[at]
        mu -= 0.5 * (-math.log2(shares[at]) - 1.1)
        ids.append(token_id)
    assert len(set(ids)) > 1


def test_mirostat_leaves_the_other_filters_out_but_not_the_temperature() -> None:
    params = SamplingParams(temperature=1.0, top_k=1, mirostat=2, mirostat_tau=9.0)
    drawn = {choose(LOGITS, params, [0] * at, [], seed=5) for at in range(100)}
    assert drawn == {0, 1, 2, 3}
    cold = SamplingParams(temperature=0.01, mirostat=2, mirostat_tau=9.0)
    assert {choose(LOGITS, cold, [0] * at, [], seed=5) for at in range(100)} == {1}


def test_every_sampler_of_the_list_has_its_function() -> None:
    assert set(sampling._SAMPLERS) == set(SAMPLERS)


def test_order_matters_and_is_heeded() -> None:
    """Min-p 0.35 keeps 0.5 and 0.25 (from 0.175 on); at temperature 0.5 shares are squared, and
    of 0.725 and 0.181 the second is below 0.254."""
    how = {"temperature": 0.5, "top_k": 0, "top_p": 1.0, "min_p": 0.35}
    before = SamplingParams(samplers=("min_p", "temperature"), **how)
    behind = SamplingParams(samplers=("temperature", "min_p"), **how)
    assert {choose(LOGITS, before, [0] * at, [], seed=1) for at in range(100)} == {1, 3}
    assert {choose(LOGITS, behind, [0] * at, [], seed=1) for at in range(100)} == {1}


def test_a_sampler_left_out_is_not_applied() -> None:
    params = SamplingParams(temperature=1e-3, top_k=1, samplers=("top_p",), top_p=0.7)
    assert {choose(LOGITS, params, [0] * at, [], seed=1) for at in range(100)} == {1, 3}
    banned = SamplingParams(temperature=0, repetition_penalty=100.0, samplers=("top_k",))
    assert choose(LOGITS, banned, [], [1], seed=1) == 1


def test_penalties_may_come_after_top_k() -> None:
    """Of tokens 1 and 3 the first loses log 4: what is left of it is half of the other's 0.25."""
    logits = LOGITS + np.float32(10)
    how = {"temperature": 1.0, "top_k": 2, "presence_penalty": math.log(4), "min_p": 0.6}
    params = SamplingParams(samplers=("top_k", "penalties", "min_p", "temperature"), **how)
    assert {choose(logits, params, [0] * at, [1], seed=1) for at in range(50)} == {3}
