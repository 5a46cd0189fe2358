"""The sampling chain on small distributions, each filter by hand."""

import math
from collections import Counter

import numpy as np
import pytest

from m40llm.engine import samplers, sampling
from m40llm.engine.candidates import Candidates
from m40llm.engine.sampling import choose
from m40llm.engine.sampling_params import SamplingParams
from m40llm.errors import RequestError

PROBABILITIES = np.array([0.1, 0.5, 0.15, 0.25])  # of tokens 0 to 3
LOGITS = np.log(PROBABILITIES).astype(np.float32)
EVERYTHING = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}


def candidates() -> Candidates:
    return Candidates.of(LOGITS).descending()


def test_top_k_sorts_and_cuts() -> None:
    assert samplers.top_k(Candidates.of(LOGITS), 2).ids.tolist() == [1, 3]
    assert samplers.top_k(candidates(), 3).ids.tolist() == [1, 3, 2]
    assert samplers.top_k(candidates(), 0).ids.tolist() == [1, 3, 2, 0]
    assert samplers.top_k(candidates(), 99).ids.tolist() == [1, 3, 2, 0]


def test_top_k_ties_go_to_the_smaller_id() -> None:
    assert samplers.top_k(Candidates.of(np.zeros(5, np.float32)), 2).ids.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("p", "ids"), [(0.4, [1]), (0.5, [1]), (0.51, [1, 3]), (0.8, [1, 3, 2]), (1.0, [1, 3, 2, 0])]
)
def test_top_p(p: float, ids: list[int]) -> None:
    assert samplers.top_p(candidates(), p).ids.tolist() == ids


@pytest.mark.parametrize(("p", "ids"), [(0.0, [1, 3, 2, 0]), (0.29, [1, 3, 2]), (0.6, [1])])
def test_min_p(p: float, ids: list[int]) -> None:
    """Thresholds 0, 0.145 and 0.3 of probability."""
    assert samplers.min_p(candidates(), p).ids.tolist() == ids


def test_typical_p_keeps_the_nearest_to_the_mean_surprise() -> None:
    """Entropy 1.208; surprises 0.693 (1), 1.386 (3), 1.897 (2), 2.303 (0): 3 is nearest, then 1."""
    assert samplers.typical_p(candidates(), 0.2).ids.tolist() == [3]
    assert samplers.typical_p(candidates(), 0.7).ids.tolist() == [1, 3]


def test_penalties() -> None:
    logits = np.array([2.0, -2.0, 1.0, 0.5], np.float32)
    params = SamplingParams(repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25)
    before = Candidates.of(logits)
    got = samplers.penalties(before, params, prompt_ids=[0], ids=[1, 1, 3])
    np.testing.assert_allclose(got.logits, [1.0, -4.0 - 0.5 - 0.5, 1.0, 0.25 - 0.5 - 0.25])
    np.testing.assert_array_equal(before.logits, [2.0, -2.0, 1.0, 0.5])  # not changed in place


def test_bias_bans_and_lifts() -> None:
    params = SamplingParams(temperature=0, logit_bias={1: -math.inf, 2: 1.0})
    assert choose(LOGITS, params, [], [], seed=0) == 2
    everything = SamplingParams(temperature=0, logit_bias=dict.fromkeys(range(4), -math.inf))
    with pytest.raises(RequestError, match="every token is banned"):
        choose(LOGITS, everything, [], [], seed=0)


@pytest.mark.parametrize(
    ("uniform", "token"), [(0.0, 1), (0.49, 1), (0.51, 3), (0.76, 2), (0.95, 0), (1 - 1e-16, 0)]
)
def test_draw_inverts_the_cdf(uniform: float, token: int) -> None:
    assert sampling.draw(candidates(), uniform) == token


def test_temperature_sharpens() -> None:
    """At 0.5 probabilities are squared: 0.25 of 0.345 for token 1."""
    tempered = samplers.temperature(candidates(), SamplingParams(temperature=0.5))
    assert sampling.draw(tempered, 0.72) == 1
    assert sampling.draw(tempered, 0.73) == 3


def test_draws_follow_the_distribution() -> None:
    """Chi-square of 4,000 draws with 3 degrees of freedom stays below 16.27 (p = 0.001)."""
    params = SamplingParams(temperature=1.0, **EVERYTHING)
    n = 4000
    drawn = Counter(choose(LOGITS, params, [0] * at, [], seed=42) for at in range(n))
    expected = n * PROBABILITIES
    chi_square = sum((drawn[i] - expected[i]) ** 2 / expected[i] for i in range(4))
    assert chi_square < 16.27


def test_same_seed_same_number_and_position_matters() -> None:
    assert sampling.uniform_at(7, 3) == sampling.uniform_at(7, 3)
    numbers = {sampling.uniform_at(seed, pos) for seed in (0, 1, 2**63 - 1) for pos in range(10)}
    assert len(numbers) == 30


def test_greedy_takes_the_first_of_equals() -> None:
    assert choose(np.zeros(4, np.float32), SamplingParams(temperature=0), [], [], seed=1) == 0


def test_log_softmax_sums_to_one() -> None:
    logits = np.array([1e4, 1e4, -1e4], np.float32)
    np.testing.assert_allclose(np.exp(sampling.log_softmax(logits)), [0.5, 0.5, 0.0])


BAD = {
    "temperature": [-0.1, math.nan, math.inf, "1", True, None],
    "top_k": [-1, 1.5, "40", None],
    "top_p": [0.0, -1, 1.01, math.nan],
    "min_p": [-0.1, 1.1],
    "typical_p": [0.0, 2],
    "repetition_penalty": [0.0, -1, math.inf],
    "presence_penalty": [math.nan, 1e9],
    "frequency_penalty": [math.nan, "x"],
    "seed": [-1, 2**63, 1.0],
    "stop": [("",), (1,), 3, None],
    "stop_ids": [(-1,), ("a",), 5],
    "max_tokens": [0, -5, 2.0],
    "logit_bias": [{0: math.nan}, {0: math.inf}, {-1: 1.0}, {"a": 1.0}, [1]],
    "logprobs": [-1, 1.5],
    "top_n_sigma": [-1, math.nan],
    "xtc_probability": [-0.1, 1.1],
    "xtc_threshold": [-0.1, 2],
    "dynatemp_range": [-1, "wide"],
    "dynatemp_exponent": [-1, math.inf],
    "dry_multiplier": [-1, None],
    "dry_base": [0.9, math.nan],
    "dry_allowed_length": [0, 2.0],
    "dry_last_n": [-2, None],
    "dry_breakers": [("",), (-1,), (1.5,), 3.5, None],
    "mirostat": [1, 3, True, "2", None],
    "mirostat_tau": [-1],
    "mirostat_eta": [-0.1, 1.5],
    "samplers": ["top_k", ("top_k", "top_k"), ("warmth",), None, 5],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, vs in BAD.items() for v in vs])
def test_bad_parameters_are_named(name: str, value: object) -> None:
    with pytest.raises(RequestError, match=name):
        SamplingParams(**{name: value})


def test_one_stop_string_is_a_list_of_one() -> None:
    assert SamplingParams(stop="END").stop == ("END",)
