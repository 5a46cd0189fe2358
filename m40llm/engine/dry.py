"""DRY, "don't repeat yourself": the longer a repetition, the less likely is the token to go on.

As llama.cpp has it (llama-sampling.cpp, after p-e-w's proposal for text-generation-webui): where
the end of the text, n tokens long, stood in the text before, the token that followed it there
loses multiplier * base ** (n - allowed_length). No repetition reaches across a breaker.
"""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from m40llm.engine.candidates import Candidates, Ints
from m40llm.engine.sampling_params import SamplingParams

_LOG_OF_MOST: Final = 88.7228391  # of the largest FP32 number: powers beyond are cut to it


def dry(
    candidates: Candidates, params: SamplingParams, prompt_ids: Sequence[int], ids: Sequence[int]
) -> Candidates:
    """The candidates with their penalties; `params.dry_breakers` are token ids here."""
    if params.dry_multiplier == 0.0:
        return candidates
    text = np.asarray([*prompt_ids, *ids], np.int64)
    if params.dry_last_n >= 0:
        text = text[max(len(text) - params.dry_last_n, 0) :]
    breakers = np.asarray(params.dry_breakers, np.int64)
    logits = candidates.logits.astype(np.float64)
    for token_id, n in _longest_repeats(text, breakers).items():
        if n >= params.dry_allowed_length and token_id not in breakers:
            logits[candidates.ids == token_id] -= _penalty(params, n)
    return Candidates(candidates.ids, logits)


def _penalty(params: SamplingParams, n: int) -> float:
    exponent = float(n - params.dry_allowed_length)
    if params.dry_base > 1.0:
        exponent = min(exponent, _LOG_OF_MOST / math.log(params.dry_base))
    return params.dry_multiplier * math.pow(params.dry_base, exponent)


def _longest_repeats(text: Ints, breakers: Ints) -> dict[int, int]:
    """token id -> tokens of the text's end that stood before it, somewhere in the text."""
    backwards = text[::-1]
    n_text = len(text)
    breaks = np.flatnonzero(np.isin(backwards, breakers))
    n_most = int(breaks[0]) if breaks.size else n_text
    n_equal = np.zeros(n_text, np.int64)  # by where the earlier copy ends
    ends = np.arange(1, n_text)
    for n in range(n_most):
        ends = ends[ends + n < n_text]
        ends = ends[backwards[ends + n] == backwards[n]]
        if not ends.size:
            break
        n_equal[ends] = n + 1
    ends = np.flatnonzero(n_equal)
    ends = ends[np.argsort(n_equal[ends], kind="stable")]  # the longest last: it is the one kept
    return dict(zip(backwards[ends - 1].tolist(), n_equal[ends].tolist(), strict=True))
