"""sample against the host's chain, token by token, and note_prompt."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m40llm import reference
from m40llm.engine.sampling import choose, uniform_at
from m40llm.engine.sampling_params import SamplingParams
from m40llm.fuzz.definition import target
from m40llm.fuzz.strategies import choices, flags, seeds, sizes
from m40llm.kernels import sampling as kernels

N_THREADS = 64  # of the 512
PENALTIES = "repetition_penalty", "presence_penalty", "frequency_penalty"


@target(
    ops=kernels,
    vocab_size=sizes(N_THREADS, 300),
    is_rough=flags(),
    temperature=choices([0.0, 0.1, 0.8, 1.0, 3.0, 50.0]),
    top_k=choices([0, 1, 7, 40, 64, 65, 200, 5000]),
    top_p=choices([1.0, 0.95, 0.75, 0.5, 0.25, 0.05]),
    min_p=choices([0.0, 0.01, 0.3, 1.0]),
    seed=seeds(),
)
def sample(
    card: Any, ops: Any, vocab_size: int, is_rough: bool, temperature: float, top_k: int,
    top_p: float, min_p: float, seed: int,
) -> None:  # fmt: skip
    """The same number from the same seed, hence the host's token, off the boundaries."""
    rng = np.random.default_rng(seed)
    how = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    params = penalties(rng, vocab_size, how)
    logits = rng.normal(0, 4, vocab_size)
    logits = np.round(logits * 2) / 2 if is_rough else logits
    logits32: NDArray[np.float32] = logits.astype(np.float32)
    prompt_ids = [int(i) for i in rng.integers(0, vocab_size, 5)]
    ids = [int(i) for i in rng.integers(0, vocab_size, 3)] * int(rng.integers(0, 3))
    key = int(rng.integers(2**62))
    history = np.zeros(vocab_size, np.int32)
    history[prompt_ids] = ops.IN_PROMPT
    np.add.at(history, ids, ops.IN_ANSWER)

    state, pos = uploaded(card, ops, params, key, history), np.int32(len(prompt_ids) + len(ids))
    out, row = card.poisoned(1, np.int32), card.upload(np.zeros(1, np.int32))
    logits_on = card.upload(logits32[None], read_only=False)
    at = card.upload(np.array([pos], np.int32))
    ops.sample(logits_on, row, at, state, out, stream=card, n_threads=N_THREADS)
    token_id = int(card.read(out)[0])
    expected = history.copy()
    if token_id >= 0:
        expected[token_id] += ops.IN_ANSWER
    np.testing.assert_array_equal(card.read(state.history)[0], expected)
    if temperature == 0 or not near_a_boundary(logits32, params, history, key, int(pos)):
        assert token_id == choose(logits32, params, prompt_ids, ids, key)


def penalties(rng: np.random.Generator, vocab_size: int, how: dict[str, Any]) -> SamplingParams:
    """Both sides round penalties and biases alike, so that tokens are equal, at ties, too."""
    some = [int(i) for i in rng.integers(0, vocab_size, 3)]
    bias = {some[0]: 1.5, some[1]: -math.inf, some[2]: -0.25}
    has_bias = vocab_size > 1 and rng.random() < 0.5
    return SamplingParams(
        repetition_penalty=float(rng.choice([1.0, 2.0, 0.5, 1.1])),
        presence_penalty=float(rng.choice([0.0, 1.5, 0.1, 0.7])),
        frequency_penalty=float(rng.choice([0.0, 0.125, 0.3, 0.1])),
        logit_bias=bias if has_bias else {},
        **how,
    )


def uploaded(card: Any, ops: Any, params: SamplingParams, key: int, history: Any) -> Any:
    """The SamplerState of one sequence."""
    p, bias = params, params.logit_bias or {-1: 0.0}
    settings = [p.temperature, p.top_p, p.min_p, *(getattr(p, name) for name in PENALTIES)]
    return ops.SamplerState(
        settings=card.upload(np.array([settings], np.float32)),
        top_k=card.upload(np.array([p.top_k], np.int32)),
        seed=card.upload(np.array([key], np.uint64)),
        bias_ids=card.upload(np.array([list(bias)], np.int32)),
        bias_values=card.upload(np.array([list(bias.values())], np.float32)),
        history=card.upload(history[None], read_only=False),
    )


def near_a_boundary(given: Any, params: SamplingParams, history: Any, key: int, pos: int) -> bool:
    """Whether FP32 could move a filter's or the draw's boundary over the number.

    A weight exp(x) is off by less than 2^-22 (1 + |x|) of itself, and |x| < 28 where it counts;
    a cumulative probability by no more.
    """
    close, p = 2.0**-22 * 29 * 2, params
    logits = given.astype(np.float64)
    for token_id, value in p.logit_bias.items():
        logits[token_id] += value
    logits = reference.penalised(logits, history, *(getattr(p, name) for name in PENALTIES))
    ids, plain = reference.distribution(logits, 1.0, p.top_k, 1.0, 0.0)
    if p.top_p < 1 and (np.abs(np.cumsum(plain) - p.top_p) < close).any():
        return True
    if 0 < p.min_p < 1:
        to_edge = logits[ids[0]] + np.log(p.min_p) - logits[ids]
        if (np.abs(to_edge) < 1e-5).any():
            return True
    _, tempered = reference.distribution(logits, p.temperature, p.top_k, p.top_p, p.min_p)
    uniform = uniform_at(key, pos)
    return bool((np.abs(np.cumsum(tempered)[:-1] - uniform) < close).any())


@target(ops=kernels, n_tokens=sizes(32, 80), vocab_size=sizes(4, 9), seed=seeds())
def note_prompt(card: Any, ops: Any, n_tokens: int, vocab_size: int, seed: int) -> None:
    """Many tokens note the same entry at once."""
    rng = np.random.default_rng(seed)
    history = (ops.IN_ANSWER * rng.integers(0, 3, (3, vocab_size))).astype(np.int32)
    ids, seq = (rng.integers(0, n, n_tokens).astype(np.int32) for n in (vocab_size, 3))
    history_on = card.upload(history, read_only=False)
    ops.note_prompt(card.upload(ids), card.upload(seq), history_on, stream=card)
    history[seq, ids] |= ops.IN_PROMPT
    np.testing.assert_array_equal(card.read(history_on), history)
