"""Sampling: from the logits of one position to one token, as a chain of small pure functions.

The order is llama.cpp's: logit_bias and penalties, then (unless greedy) top_k, typical_p, top_p,
min_p, temperature, and a draw. Filters work on probabilities at temperature 1.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m40llm.errors import RequestError

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class SamplingParams:
    """How to choose tokens, and when to stop. RequestError names a field that is out of range.

    temperature         0.8    0 is greedy: the largest logit, nothing below matters
    top_k               40     keep the k likeliest; 0 keeps all
    top_p               0.95   keep the fewest that reach this probability together; 1 keeps all
    min_p               0.05   keep those at least this fraction as likely as the likeliest
    typical_p           1.0    locally typical sampling (arXiv 2202.00666); 1 keeps all
    repetition_penalty  1.0    divides logits of tokens in prompt or answer (multiplies negative)
    presence_penalty    0.0    subtracted once from logits of tokens in the answer
    frequency_penalty   0.0    subtracted once an occurrence in the answer
    seed                None   same seed, same text; None draws one
    stop                ()     strings that end the answer; not part of it
    stop_ids            ()     token ids that end it, beside the model's own
    max_tokens          None   to the end of the context
    logit_bias          {}     token id -> added to its logit; -inf bans it
    logprobs            None   also report this many likeliest tokens a position (0: the chosen)
    ignore_eos          False  go on past the model's own end tokens
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: Sequence[str] = ()
    stop_ids: Sequence[int] = ()
    max_tokens: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        _check_range("temperature", self.temperature, 0.0, 1e3)
        _check_range("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _check_range("min_p", self.min_p, 0.0, 1.0)
        _check_range("typical_p", self.typical_p, 0.0, 1.0, open_low=True)
        _check_range("repetition_penalty", self.repetition_penalty, 0.0, 1e3, open_low=True)
        _check_range("presence_penalty", self.presence_penalty, -1e3, 1e3)
        _check_range("frequency_penalty", self.frequency_penalty, -1e3, 1e3)
        _check_int("top_k", self.top_k, 0)
        _check_int("seed", self.seed, 0, is_optional=True)
        _check_int("max_tokens", self.max_tokens, 1, is_optional=True)
        _check_int("logprobs", self.logprobs, 0, is_optional=True)
        object.__setattr__(self, "stop", _stop_strings(self.stop))
        object.__setattr__(self, "stop_ids", _stop_ids(self.stop_ids))
        _check_bias(self.logit_bias)

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0


def _check_range(name: str, value: Any, low: float, high: float, *, open_low: bool = False) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    inside = is_number and (low < value if open_low else low <= value) and value <= high
    if not inside:
        above = f"above {low:g}" if open_low else f"from {low:g}"
        raise RequestError(f"{name}: expected a number {above} to {high:g}, got {value!r}")


def _check_int(name: str, value: Any, low: int, *, is_optional: bool = False) -> None:
    if value is None and is_optional:
        return
    is_int = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_int or value < low or value >= 2**63:
        raise RequestError(f"{name}: expected an integer from {low}, got {value!r}")


def _stop_strings(stop: Any) -> tuple[str, ...]:
    is_list = isinstance(stop, Sequence | set | frozenset) and not isinstance(stop, str)
    strings = tuple(stop) if is_list else (stop,)
    if not all(isinstance(s, str) and s for s in strings):
        raise RequestError(f"stop: expected non-empty strings, got {stop!r}")
    return strings


def _stop_ids(stop_ids: Any) -> tuple[int, ...]:
    try:
        ids = tuple(stop_ids)
    except TypeError:
        raise RequestError(f"stop_ids: expected token ids, got {stop_ids!r}") from None
    for token_id in ids:
        _check_int("stop_ids", token_id, 0)
    return ids


def _check_bias(bias: Any) -> None:
    if not isinstance(bias, Mapping):
        raise RequestError(f"logit_bias: expected a mapping of token id to number, got {bias!r}")
    for token_id, value in bias.items():
        _check_int("logit_bias: token id", token_id, 0)
        if not isinstance(value, int | float) or math.isnan(value) or value == math.inf:
            raise RequestError(f"logit_bias: expected a finite number or -inf, got {value!r}")


@dataclass(frozen=True)
class Candidates:
    """Tokens still in the race, likeliest first.

    ids     int64[n]
    logits  float64[n]  descending
    """

    ids: Ints
    logits: NDArray[np.float64]

    @property
    def probabilities(self) -> NDArray[np.float64]:
        return softmax(self.logits)

    def keep(self, chosen: Any) -> "Candidates":
        """Those at a slice, mask or list of positions."""
        return Candidates(self.ids[chosen], self.logits[chosen])


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """exp(logits) / sum, with the maximum taken out first."""
    weights = np.exp(logits - logits.max())
    return np.asarray(weights / weights.sum())


def log_softmax(logits: Floats) -> NDArray[np.float64]:
    """Log-probabilities float64[vocab_size] of the unmodified model."""
    shifted = logits.astype(np.float64) - float(logits.max())
    return np.asarray(shifted - math.log(np.exp(shifted).sum()))


def apply_bias(logits: Floats, bias: Mapping[int, float]) -> Floats:
    """logits[id] += bias, in a copy."""
    logits = logits.copy()
    for token_id, value in bias.items():
        logits[token_id] += np.float32(value)
    return logits


def apply_penalties(
    logits: Floats, params: SamplingParams, prompt_ids: Sequence[int], ids: Sequence[int]
) -> Floats:
    """Repetition over prompt and answer, presence and frequency over the answer, in a copy."""
    logits = logits.copy()
    if params.repetition_penalty != 1.0:
        seen = np.unique(np.asarray([*prompt_ids, *ids], np.int64))
        penalty = np.float32(params.repetition_penalty)
        logits[seen] = np.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
    if ids and (params.presence_penalty or params.frequency_penalty):
        seen, counts = np.unique(np.asarray(ids, np.int64), return_counts=True)
        presence = np.float64(np.float32(params.presence_penalty))
        frequency = np.float64(np.float32(params.frequency_penalty))
        lost = presence + frequency * counts  # rounded once, as an FMA
        logits[seen] -= lost.astype(np.float32)
    return logits


def top_k(logits: Floats, k: int) -> Candidates:
    """The k likeliest tokens, sorted; all of them for k = 0. Ties go to the smaller id."""
    n = logits.size if k == 0 else min(k, logits.size)
    if n < logits.size:
        threshold = np.partition(logits, logits.size - n)[logits.size - n]
        ids = np.flatnonzero(logits >= threshold)
    else:
        ids = np.arange(logits.size)
    order = np.argsort(-logits[ids], kind="stable")[:n]
    ids = ids[order]
    return Candidates(ids, logits[ids].astype(np.float64))


def typical_p(candidates: Candidates, p: float) -> Candidates:
    """The tokens whose surprise is nearest the mean surprise, until they reach probability p."""
    if p >= 1.0:
        return candidates
    probabilities = candidates.probabilities
    surprise = -np.log(np.maximum(probabilities, 1e-300))
    distance = np.abs(surprise - (probabilities * surprise).sum())
    order = np.argsort(distance, kind="stable")
    n = _count_reaching(probabilities[order], p)
    return candidates.keep(np.sort(order[:n]))


def top_p(candidates: Candidates, p: float) -> Candidates:
    """Nucleus: the fewest likeliest tokens that reach probability p together."""
    if p >= 1.0:
        return candidates
    return candidates.keep(slice(0, _count_reaching(candidates.probabilities, p)))


def min_p(candidates: Candidates, p: float) -> Candidates:
    """The tokens at least p times as likely as the likeliest."""
    if p == 0.0:
        return candidates
    return candidates.keep(candidates.logits >= candidates.logits[0] + math.log(p))


def _count_reaching(probabilities: NDArray[np.float64], p: float) -> int:
    """How many leading entries sum to at least p; never none."""
    return min(int(np.searchsorted(np.cumsum(probabilities), p)) + 1, probabilities.size)


def draw(candidates: Candidates, temperature: float, uniform: float) -> int:
    """Inverse-CDF draw: `uniform` in [0, 1) picks the token from the tempered distribution."""
    cumulative = np.cumsum(softmax(candidates.logits / temperature))
    at = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
    return int(candidates.ids[min(at, candidates.ids.size - 1)])


def uniform_at(seed: int, pos: int) -> float:
    """The random number of one position: counter-based, so it depends on nothing else.

    Philox4x64 (Salmon et al., 2011) keyed by the seed, its counter the position.
    """
    generator = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, pos]))
    return float(generator.random())


def choose(
    logits: Floats,
    params: SamplingParams,
    prompt_ids: Sequence[int],
    ids: Sequence[int],
    seed: int,
) -> int:
    """The next token's id. logits float32[vocab_size], unmodified; ids is the answer so far."""
    if params.logit_bias:
        logits = apply_bias(logits, params.logit_bias)
    logits = apply_penalties(logits, params, prompt_ids, ids)
    if logits.max() == -np.inf:
        raise RequestError("logit_bias: every token is banned")
    if params.is_greedy:
        return int(np.argmax(logits))
    candidates = top_k(logits, params.top_k)
    candidates = typical_p(candidates, params.typical_p)
    candidates = top_p(candidates, params.top_p)
    candidates = min_p(candidates, params.min_p)
    return draw(candidates, params.temperature, uniform_at(seed, len(prompt_ids) + len(ids)))
