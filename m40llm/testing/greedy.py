"""Whether two devices choose the same greedy tokens, wherever that is not a matter of rounding."""

from collections.abc import Sequence

import numpy as np

from m40llm import LLM, SamplingParams


def assert_same_greedy(
    llm: LLM, reference: LLM, prompt_ids: Sequence[int], n_tokens: int, *, gap: float
) -> None:
    """AssertionError unless `llm` decodes the reference's `n_tokens` greedy tokens.

    Where the reference's two best logits are at most `gap` apart, `llm` may choose another; from
    there it goes on with the reference's token, so that every position is compared.
    """
    prompt = list(prompt_ids)
    expected = reference.generate(prompt, _greedy(n_tokens)).ids
    best = np.sort(reference.logits(prompt + expected)[len(prompt) - 1 : -1], axis=1)
    gaps = best[:, -1] - best[:, -2]
    start = 0
    while start < n_tokens:
        got = llm.generate(prompt + expected[:start], _greedy(n_tokens - start)).ids
        differ = np.flatnonzero(np.array(got) != expected[start:])
        if not len(differ):
            return
        at = start + int(differ[0])
        assert gaps[at] <= gap, (
            f"token {at} of {n_tokens} is {got[at - start]} on {llm.device_name}, {expected[at]} "
            f"on {reference.device_name}, where the best logit leads by {gaps[at]:.3f}"
        )
        start = at + 1


def _greedy(n_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=n_tokens, ignore_eos=True)
