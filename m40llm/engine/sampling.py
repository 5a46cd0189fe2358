"""Sampling: from the logits of one position to one token, by a chain of samplers.

The bias comes first, then the samplers in the order of `SamplingParams.samplers`, then a draw.
Greedy takes the largest logit after bias, penalties and DRY.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from m40llm.engine import samplers
from m40llm.engine.candidates import Candidates
from m40llm.engine.dry import dry
from m40llm.engine.sampling_params import SamplingParams
from m40llm.errors import RequestError

Logits = NDArray[np.float32]


class Moment(NamedTuple):
    """What samplers may look at beside the candidates; `uniform` is XTC's random number."""

    params: SamplingParams
    prompt_ids: Sequence[int]
    ids: Sequence[int]
    uniform: float


Sampler = Callable[[Candidates, Moment], Candidates]
_SAMPLERS: Final[dict[str, Sampler]] = {
    "penalties": lambda c, at: samplers.penalties(c, at.params, at.prompt_ids, at.ids),
    "dry": lambda c, at: dry(c, at.params, at.prompt_ids, at.ids),
    "top_n_sigma": lambda c, at: samplers.top_n_sigma(c, at.params.top_n_sigma),
    "top_k": lambda c, at: samplers.top_k(c, at.params.top_k),
    "typical_p": lambda c, at: samplers.typical_p(c, at.params.typical_p),
    "top_p": lambda c, at: samplers.top_p(c, at.params.top_p),
    "min_p": lambda c, at: samplers.min_p(c, at.params.min_p),
    "xtc": lambda c, at: samplers.xtc(
        c, at.params.xtc_probability, at.params.xtc_threshold, at.uniform
    ),
    "temperature": lambda c, at: samplers.temperature(c, at.params),
}
_BEFORE_CHOICE: Final = ("penalties", "dry")  # what greedy and mirostat heed, too


class Chain:
    """Chooses the tokens of one answer, one after the other.

    Random numbers depend on seed and position alone; only mirostat remembers what came before.
    """

    def __init__(self, params: SamplingParams, prompt_ids: Sequence[int], seed: int) -> None:
        self._params, self._prompt_ids, self._seed = params, prompt_ids, seed
        self._most_surprise = 2.0 * params.mirostat_tau  # mirostat's mu, in bits

    def choose(self, logits: Logits, ids: Sequence[int]) -> int:
        """The next token's id. logits float32[vocab_size], unmodified; ids is the answer so far."""
        params = self._params
        pos = len(self._prompt_ids) + len(ids)
        uniforms = (0.0, 0.0) if params.is_greedy else uniforms_at(self._seed, pos)
        moment = Moment(params, self._prompt_ids, ids, uniforms[1])
        if params.logit_bias:
            logits = apply_bias(logits, params.logit_bias)
        candidates = Candidates.of(logits)
        if logits.max() == -np.inf:
            raise RequestError("logit_bias: every token is banned")
        is_short = params.is_greedy or params.mirostat == 2
        for name in params.samplers:
            if name in _BEFORE_CHOICE or not is_short:
                candidates = _SAMPLERS[name](candidates, moment)
        if params.is_greedy:
            return int(candidates.ids[np.argmax(candidates.logits)])
        if params.mirostat == 2:
            return self._mirostat(samplers.temperature(candidates, params), uniforms[0])
        return draw(candidates, uniforms[0])

    def _mirostat(self, candidates: Candidates, uniform: float) -> int:
        """Mirostat 2: cut what is more surprising than mu, draw, and correct mu by the result."""
        candidates = samplers.surprise_below(candidates, self._most_surprise)
        token_id = draw(candidates, uniform)
        probability = candidates.probabilities[candidates.ids == token_id][0]
        error = -math.log2(probability) - self._params.mirostat_tau
        self._most_surprise -= self._params.mirostat_eta * error
        return token_id


def choose(
    logits: Logits,
    params: SamplingParams,
    prompt_ids: Sequence[int],
    ids: Sequence[int],
    seed: int,
) -> int:
    """One token of a chain that remembers nothing (mirostat begins anew)."""
    return Chain(params, prompt_ids, seed).choose(logits, ids)


def apply_bias(logits: Logits, bias: Mapping[int, float]) -> Logits:
    """logits[id] += bias, in a copy."""
    logits = logits.copy()
    for token_id, value in bias.items():
        logits[token_id] += np.float32(value)
    return logits


def draw(candidates: Candidates, uniform: float) -> int:
    """Inverse-CDF draw: `uniform` in [0, 1) picks the token."""
    candidates = candidates.descending()
    cumulative = np.cumsum(candidates.probabilities)
    at = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
    return int(candidates.ids[min(at, candidates.ids.size - 1)])


def uniform_at(seed: int, pos: int) -> float:
    """The random number that draws the token of a position."""
    return uniforms_at(seed, pos)[0]


def uniforms_at(seed: int, pos: int) -> tuple[float, float]:
    """Two random numbers of one position, for the draw and for XTC; they depend on nothing else.

    Philox4x64 (Salmon et al., 2011) keyed by the seed, its counter the position.
    """
    generator = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, pos]))
    return float(generator.random()), float(generator.random())


def log_softmax(logits: Logits) -> NDArray[np.float64]:
    """Log-probabilities float64[..., vocab_size] of the unmodified model, of one row or several."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))
