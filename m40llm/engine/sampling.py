"""Sampling: from the logits of one position to one token, by a chain of samplers.

The bias comes first, then the samplers in the order of `SamplingParams.samplers`, then a draw.
Greedy takes the largest logit after bias, penalties and DRY.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from m40llm.engine import samplers
from m40llm.engine.candidates import Candidates
from m40llm.engine.constraint import Constraint, ids_of
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


class Draws(NamedTuple):
    """The random numbers of one position, uniform in [0, 1)."""

    token: float  # draws the token
    xtc: float
    accept: float  # a draft model's proposal is taken, or not
    proposal: float  # draws that proposal


_NO_DRAWS: Final = Draws(0.0, 0.0, 0.0, 0.0)


class Chain:
    """Chooses the tokens of one answer, one after the other.

    Random numbers depend on seed and position alone; only mirostat and a constraint remember what
    came before.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt_ids: Sequence[int],
        seed: int,
        constraint: Constraint | None = None,
    ) -> None:
        self._params, self._prompt_ids, self._seed = params, prompt_ids, seed
        self._constraint = constraint
        self._most_surprise = 2.0 * params.mirostat_tau  # mirostat's mu, in bits

    def fork(self) -> "Chain":
        """Another that remembers the same; what it is told from now on, this one is not."""
        other = copy(self)
        other._constraint = self._constraint and self._constraint.fork()
        return other

    def choose(self, logits: Logits, ids: Sequence[int]) -> int:
        """The next token's id. logits float32[vocab_size], unmodified; ids is the answer so far."""
        draws = self.draws(ids)
        candidates = self.candidates(logits, ids, draws)
        token_id = draw(candidates, draws.token)
        self.heed(token_id, candidates)
        return token_id

    def draws(self, ids: Sequence[int]) -> Draws:
        """The random numbers of the token that follows `ids`."""
        if self._params.is_greedy:
            return _NO_DRAWS
        return draws_at(self._seed, len(self._prompt_ids) + len(ids))

    def candidates(self, logits: Logits, ids: Sequence[int], draws: Draws) -> Candidates:
        """The tokens that the next one is drawn from; their probabilities are those of the draw."""
        params = self._params
        moment = Moment(params, self._prompt_ids, ids, draws.xtc)
        if params.logit_bias:
            logits = apply_bias(logits, params.logit_bias)
        candidates = Candidates.of(logits)
        if logits.max() == -np.inf:
            raise RequestError("logit_bias: every token is banned")
        if self._constraint:
            candidates = candidates.keep(ids_of(self._constraint.mask(), logits.size))
            if candidates.logits.max() == -np.inf:
                raise RequestError("logit_bias: every token that may come next is banned")
        is_short = params.is_greedy or params.mirostat == 2
        for name in params.samplers:
            if name in _BEFORE_CHOICE or not is_short:
                candidates = _SAMPLERS[name](candidates, moment)
        if params.is_greedy:
            best = int(np.argmax(candidates.logits))
            return candidates.keep(slice(best, best + 1))
        if params.mirostat == 2:
            tempered = samplers.temperature(candidates, params)
            return samplers.surprise_below(tempered, self._most_surprise)
        return candidates

    def heed(self, token_id: int, candidates: Candidates) -> None:
        """What was chosen, and from what: mirostat 2 corrects mu by how surprising that was."""
        params = self._params
        if self._constraint:
            self._constraint.heed(token_id)
        if params.mirostat == 2 and not params.is_greedy:
            probability = candidates.probabilities[candidates.ids == token_id][0]
            error = -math.log2(probability) - params.mirostat_tau
            self._most_surprise -= params.mirostat_eta * error


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
    if candidates.ids.size == 1:
        return int(candidates.ids[0])
    candidates = candidates.descending()
    cumulative = np.cumsum(candidates.probabilities)
    at = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
    return int(candidates.ids[min(at, candidates.ids.size - 1)])


def uniform_at(seed: int, pos: int) -> float:
    """The random number that draws the token of a position."""
    return draws_at(seed, pos).token


def draws_at(seed: int, pos: int) -> Draws:
    """The random numbers of one position; they depend on nothing else.

    Philox4x64 (Salmon et al., 2011) keyed by the seed, its counter the position.
    """
    generator = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, pos]))
    return Draws(*generator.random(len(Draws._fields)).tolist())


def log_softmax(logits: Logits) -> NDArray[np.float64]:
    """Log-probabilities float64[..., vocab_size] of the unmodified model, of one row or several."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))
