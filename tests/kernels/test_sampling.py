"""sampling on the device against the host's chain, and against its distribution."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from m40llm import reference
from m40llm.engine.sampling import choose, uniform_at
from m40llm.engine.sampling_params import SamplingParams
from m40llm.errors import KernelContractError
from m40llm.kernels.contract import Kernel
from m40llm.kernels.philox import uniform_bits
from m40llm.kernels.sampling import N_SETTINGS, SamplerState, note_prompt, sample

SEEDS = st.integers(0, 2**32 - 1)
N_THREADS = 64
FRACTIONS = st.sampled_from([1.0, 0.95, 0.75, 0.5, 0.25, 0.05])


@dataclass
class Case:
    """One sequence: its logits, how it samples and what it has seen."""

    logits: np.ndarray
    params: SamplingParams
    prompt_ids: list[int]
    ids: list[int]
    seed: int = 0

    @property
    def pos(self) -> int:
        return len(self.prompt_ids) + len(self.ids)

    @property
    def history(self) -> np.ndarray:
        history = np.zeros(self.logits.size, np.int32)
        history[self.prompt_ids] = 1
        np.add.at(history, self.ids, 2)
        return history

    def on_host(self) -> int:
        return choose(self.logits, self.params, self.prompt_ids, self.ids, self.seed)


def upload_state(launcher: Any, cases: list[Case]) -> SamplerState:
    settings = np.empty((len(cases), N_SETTINGS), np.float32)
    max_bias = max(1, *(len(case.params.logit_bias) for case in cases))
    bias_ids = np.full((len(cases), max_bias), -1, np.int32)
    bias_values = np.zeros((len(cases), max_bias), np.float32)
    for row, case in enumerate(cases):
        p = case.params
        penalties = (p.repetition_penalty, p.presence_penalty, p.frequency_penalty)
        settings[row] = (p.temperature, p.top_p, p.min_p, *penalties)
        for entry, (token_id, value) in enumerate(p.logit_bias.items()):
            bias_ids[row, entry], bias_values[row, entry] = token_id, value
    return SamplerState(
        settings=launcher.upload(settings),
        top_k=launcher.upload(np.array([case.params.top_k for case in cases], np.int32)),
        seed=launcher.upload(np.array([case.seed for case in cases], np.uint64)),
        bias_ids=launcher.upload(bias_ids),
        bias_values=launcher.upload(bias_values),
        history=launcher.upload(np.stack([case.history for case in cases])),
    )


def on_device(launcher: Any, cases: list[Case], stream: Any = None) -> np.ndarray:
    """The tokens of all cases, in one launch whose rows are the sequences backwards."""
    state = upload_state(launcher, cases)
    seq = np.arange(len(cases), dtype=np.int32)[::-1].copy()
    logits = launcher.upload(np.stack([cases[s].logits for s in seq]))
    pos = launcher.upload(np.array([cases[s].pos for s in seq], np.int32))
    out = launcher.poisoned((len(cases),), np.int32)
    sample(
        logits, launcher.upload(seq), pos, state, out,
        stream=stream or launcher, n_threads=N_THREADS,
    )  # fmt: skip
    tokens = launcher.read(out)[::-1]
    expected = np.stack([case.history for case in cases])
    for row, token_id in enumerate(tokens):
        if token_id >= 0:
            expected[row, token_id] += 2
    np.testing.assert_array_equal(launcher.read(state.history), expected)
    return tokens


def drawn_case(rng: np.random.Generator, vocab_size: int, is_rough: bool, **settings: Any) -> Case:
    """Penalties are rounded alike on both sides; rough logits, multiples of 1/2, make ties."""
    logits = rng.normal(0, 4, vocab_size)
    if is_rough:
        logits = np.round(logits * 2) / 2
    some = rng.integers(0, vocab_size, 6)
    bias = {int(some[0]): 1.5, int(some[1]): -math.inf, int(some[2]): -0.25}
    has_bias = vocab_size > 1 and rng.random() < 0.5
    params = SamplingParams(
        repetition_penalty=float(rng.choice([1.0, 2.0, 0.5, 1.1])),
        presence_penalty=float(rng.choice([0.0, 1.5, 0.1, 0.7])),
        frequency_penalty=float(rng.choice([0.0, 0.125, 0.3, 0.1])),
        logit_bias=bias if has_bias else {},
        **settings,
    )
    ids = [int(i) for i in some[3:]] * int(rng.integers(0, 3))
    prompt_ids = [int(i) for i in some[:5]]
    return Case(logits.astype(np.float32), params, prompt_ids, ids, int(rng.integers(2**62)))


@given(vocab_size=st.integers(1, 300), is_rough=st.booleans(), seed=SEEDS)
@example(vocab_size=1, is_rough=False, seed=0)
@example(vocab_size=65, is_rough=True, seed=1)
def test_greedy_is_the_hosts(launcher: Any, vocab_size: int, is_rough: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    cases = [drawn_case(rng, vocab_size, is_rough, temperature=0.0) for _ in range(3)]
    tokens = on_device(launcher, cases, launcher.reordered(seed))
    np.testing.assert_array_equal(tokens, [case.on_host() for case in cases])


@given(
    vocab_size=st.sampled_from([1, 5, 64, 65, 300, 700]),
    is_rough=st.booleans(),
    temperature=st.sampled_from([0.1, 0.8, 1.0, 3.0, 50.0]),
    top_k=st.sampled_from([0, 1, 7, 40, 64, 65, 200, 5000]),
    top_p=FRACTIONS,
    min_p=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
    seed=SEEDS,
)
@example(700, True, 0.8, 0, 1.0, 0.0, 0)
@example(700, True, 0.8, 40, 0.95, 0.05, 1)
@example(300, True, 0.8, 0, 1e-30, 0.0, 2)
@example(64, True, 1.0, 0, 0.5, 0.3, 3)
def test_draw_is_the_hosts(
    launcher: Any, vocab_size: int, is_rough: bool, temperature: float, top_k: int, top_p: float,
    min_p: float, seed: int,
) -> None:  # fmt: skip
    """The same number from the same seed, hence the same token, off the boundaries."""
    rng = np.random.default_rng(seed)
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    case = drawn_case(rng, vocab_size, is_rough, **settings)
    assume(not near_a_boundary(case))
    assert on_device(launcher, [case], launcher.reordered(seed))[0] == case.on_host()


def near_a_boundary(case: Case) -> bool:
    """Whether FP32 could move a filter's or the draw's boundary over the number.

    A weight exp(x) is off by less than 2^-22 (1 + |x|) of itself, and |x| < 28 where it counts;
    a cumulative probability by no more.
    """
    close, p = 2.0**-22 * 29 * 2, case.params
    logits = case.logits.astype(np.float64)
    for token_id, value in p.logit_bias.items():
        logits[token_id] += value
    penalties = (p.repetition_penalty, p.presence_penalty, p.frequency_penalty)
    logits = reference.penalised(logits, case.history, *penalties)
    ids, plain = reference.distribution(logits, 1.0, p.top_k, 1.0, 0.0)
    if p.top_p < 1 and (np.abs(np.cumsum(plain) - p.top_p) < close).any():
        return True
    if (
        p.min_p > 0
        and p.min_p < 1
        and (np.abs(logits[ids[0]] + np.log(p.min_p) - logits[ids]) < 1e-5).any()
    ):
        return True
    _, tempered = reference.distribution(logits, p.temperature, p.top_k, p.top_p, p.min_p)
    uniform = uniform_at(case.seed, case.pos)
    return bool((np.abs(np.cumsum(tempered)[:-1] - uniform) < close).any())


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0},
        {"temperature": 0.7, "top_k": 6, "top_p": 0.9, "min_p": 0.0},
        {"temperature": 2.0, "top_k": 0, "top_p": 0.8, "min_p": 0.1},
        {"temperature": 1.5, "top_k": 9, "top_p": 1.0, "min_p": 0.2},
    ],
    ids=str,
)
def test_distribution(launcher: Any, settings: dict[str, Any]) -> None:
    """A chi-square test of 1,000 positions' draws, one seed each."""
    n_draws, logits = 1000, np.random.default_rng(5).normal(0, 1.2, 16).astype(np.float32)
    params = SamplingParams(**settings)
    cases = [Case(logits, params, [0] * (n % 50), [], seed=n) for n in range(n_draws)]
    ids, probability = reference.distribution(logits, *settings.values())
    counts = np.bincount(on_device(launcher, cases), minlength=16)
    assert counts.sum() == counts[ids].sum() == n_draws, "a token outside the filters"
    expected = probability * n_draws
    chi_square = float(((counts[ids] - expected) ** 2 / expected).sum())
    # P(chi-square > df + 2 sqrt(df t) + 2 t) <= exp(-t) (Laurent and Massart, 2000, lemma 1)
    df, t = ids.size - 1, math.log(1e6)
    assert chi_square <= df + 2 * math.sqrt(df * t) + 2 * t


def numbers(seed: Any, pos: Any, out: Any) -> None:
    out[0] = uniform_bits(seed[0], pos[0])


@given(seed=st.integers(0, 2**63 - 1), pos=st.integers(0, 2**31 - 1))
@example(seed=0, pos=0)
@example(seed=2**63 - 1, pos=2**31 - 1)
def test_philox_is_numpys(launcher: Any, seed: int, pos: int) -> None:
    out = launcher.poisoned((1,), np.uint64)
    arguments = np.array([seed], np.uint64), np.array([pos], np.int32)
    launcher.launch(_NUMBERS, 1, 1, *map(launcher.upload, arguments), out)
    assert (int(launcher.read(out)[0]) >> 11) * 2.0**-53 == uniform_at(seed, pos)


_NUMBERS = Kernel(numbers)


def test_odd_logits(launcher: Any) -> None:
    """All banned: -1. NaN is never drawn; +inf always is."""
    params = SamplingParams(top_k=0, top_p=1.0, min_p=0.0, temperature=5.0)
    nan, inf = np.nan, np.inf
    rows = [[-inf] * 4, [nan] * 4, [nan, 1, nan, -inf], [0, 3, inf, nan]]
    cases = [Case(np.array(row, np.float32), params, [], []) for row in rows]
    assert list(on_device(launcher, cases)) == [-1, -1, 1, 2]


def test_note_prompt(launcher: Any) -> None:
    history = launcher.upload(np.array([[0, 4, 0], [2, 0, 0]], np.int32))
    ids, seq = np.array([1, 1, 2, 0], np.int32), np.array([0, 0, 0, 1], np.int32)
    note_prompt(launcher.upload(ids), launcher.upload(seq), history, stream=launcher)
    np.testing.assert_array_equal(launcher.read(history), [[0, 5, 1], [3, 0, 0]])


def test_contract(launcher: Any) -> None:
    case = Case(np.zeros(4, np.float32), SamplingParams(), [], [])
    state, row = upload_state(launcher, [case]), np.zeros(1, np.int32)
    with pytest.raises(KernelContractError, match=r"history: expected int32\[1, 5\]"):
        sample(np.zeros((1, 5), np.float32), row, row, state, row, stream=launcher)
