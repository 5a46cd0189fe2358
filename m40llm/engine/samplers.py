"""Samplers: small pure functions from candidates to candidates, each as llama.cpp has it.

Probabilities are those of the candidates that a sampler is given: what an earlier one took out,
or tempered, is seen here.
"""

import math
from collections.abc import Sequence

import numpy as np

from m40llm.engine.candidates import Candidates, Floats, Ints
from m40llm.engine.sampling_params import SamplingParams


def penalties(
    candidates: Candidates, params: SamplingParams, prompt_ids: Sequence[int], ids: Sequence[int]
) -> Candidates:
    """Repetition over prompt and answer, presence and frequency over the answer; in FP32."""
    has_counts = bool(ids) and bool(params.presence_penalty or params.frequency_penalty)
    if params.repetition_penalty == 1.0 and not has_counts:
        return candidates
    logits = candidates.logits.copy()
    if params.repetition_penalty != 1.0:
        at, _ = _occurrences(candidates.ids, [*prompt_ids, *ids])
        seen, penalty = logits[at].astype(np.float32), np.float32(params.repetition_penalty)
        logits[at] = np.where(seen > 0, seen / penalty, seen * penalty)
    if has_counts:
        at, counts = _occurrences(candidates.ids, ids)
        presence = np.float64(np.float32(params.presence_penalty))
        frequency = np.float64(np.float32(params.frequency_penalty))
        lost = presence + frequency * counts  # rounded once, as an FMA
        logits[at] = logits[at].astype(np.float32) - lost.astype(np.float32)
    return Candidates(candidates.ids, logits)


def _occurrences(of: Ints, ids: Sequence[int]) -> tuple[Ints, Ints]:
    """(positions in `of` of those that are among the ids, how often each is)."""
    seen, counts = np.unique(np.asarray(ids, np.int64), return_counts=True)
    at = np.flatnonzero(np.isin(of, seen))
    return at, counts[np.searchsorted(seen, of[at])]


def top_n_sigma(candidates: Candidates, n: float) -> Candidates:
    """Logits within n standard deviations of the largest; those banned (-inf) do not count."""
    if n == 0.0:
        return candidates
    logits = candidates.exact_logits
    deviation = float(np.std(logits[logits > -np.inf]))
    return candidates.keep(logits >= logits.max() - n * deviation)


def top_k(candidates: Candidates, k: int) -> Candidates:
    """The k likeliest tokens, sorted; all of them for k = 0. Ties go to the first."""
    logits = candidates.logits
    if k == 0 or k >= logits.size:
        return candidates
    if not candidates.is_sorted:  # else sorting a whole vocabulary would cost milliseconds
        threshold = np.partition(logits, logits.size - k)[logits.size - k]
        candidates = candidates.keep(np.flatnonzero(logits >= threshold)).descending()
    return candidates.keep(slice(0, k))


def typical_p(candidates: Candidates, p: float) -> Candidates:
    """The tokens whose surprise is nearest the mean surprise, until they reach probability p."""
    if p >= 1.0:
        return candidates
    candidates = candidates.descending()
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
    candidates = candidates.descending()
    return candidates.keep(slice(0, _count_reaching(candidates.probabilities, p)))


def _count_reaching(probabilities: Floats, p: float) -> int:
    """How many leading entries sum to at least p; never none."""
    return min(int(np.searchsorted(np.cumsum(probabilities), p)) + 1, probabilities.size)


def min_p(candidates: Candidates, p: float) -> Candidates:
    """The tokens at least p times as likely as the likeliest."""
    if p == 0.0:
        return candidates
    logits = candidates.exact_logits
    return candidates.keep(logits >= logits.max() + math.log(p))


def xtc(candidates: Candidates, probability: float, threshold: float, uniform: float) -> Candidates:
    """Exclude top choices: with this probability, all at the threshold but the least likely.

    `uniform` in [0, 1) decides. Above 0.5 no two tokens can reach the threshold.
    """
    if uniform >= probability or threshold > 0.5:
        return candidates
    candidates = candidates.descending()
    n_likely = int((candidates.probabilities >= threshold).sum())
    return candidates.keep(slice(max(n_likely - 1, 0), None))


def temperature(candidates: Candidates, params: SamplingParams) -> Candidates:
    """Logits over the temperature, which follows the entropy where dynatemp_range is set."""
    degree = params.temperature
    if params.dynatemp_range > 0.0 and candidates.ids.size > 1:
        degree = _dynamic(candidates, params)
    if degree == 0.0:
        return candidates.descending().keep(slice(0, 1))
    return Candidates(candidates.ids, candidates.exact_logits / degree, candidates.is_sorted)


def _dynamic(candidates: Candidates, params: SamplingParams) -> float:
    """From temperature - range where one token is certain, to + range where all are equal."""
    probabilities = candidates.probabilities
    some = probabilities[probabilities > 0.0]
    entropy = -float((some * np.log(some)).sum()) / math.log(probabilities.size)
    low = max(params.temperature - params.dynatemp_range, 0.0)
    high = params.temperature + params.dynatemp_range
    share = min(max(entropy, 0.0), 1.0)
    return low + (high - low) * math.pow(share, params.dynatemp_exponent)


def surprise_below(candidates: Candidates, most: float) -> Candidates:
    """The tokens of at most so many bits of surprise; the likeliest stays in any case."""
    candidates = candidates.descending()
    n = int((-np.log2(np.maximum(candidates.probabilities, 1e-300)) <= most).sum())
    return candidates.keep(slice(0, max(n, 1)))
