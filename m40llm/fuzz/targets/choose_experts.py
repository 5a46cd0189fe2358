"""choose_experts: ids by ==, shares within the bound."""

from typing import Any

import numpy as np

from m40llm import reference
from m40llm.fuzz.bounds import assert_within, choose_experts_bound
from m40llm.fuzz.contents import rough_logits
from m40llm.fuzz.definition import target
from m40llm.fuzz.strategies import choices, flags, seeds, sizes
from m40llm.kernels import choose_experts as kernels

SPREADS = choices([0.0, 1.0, 30.0])
SCALES = choices([1.0, 0.22])


@target(
    ops=kernels,
    n_tokens=sizes(2, 3),
    n_experts=sizes(32, 260),
    n_used=sizes(32, 40),
    spread=SPREADS,
    scale=SCALES,
    is_normalised=flags(),
    seed=seeds(),
)
def choose_experts(
    card: Any, ops: Any, n_tokens: int, n_experts: int, n_used: int, spread: float, scale: float,
    is_normalised: bool, seed: int,
) -> None:  # fmt: skip
    """Shares are compared where the softmax of the row is a number."""
    logits, n_used = rough_logits(seed, n_tokens, n_experts, spread), min(n_used, n_experts)
    ids, shares = card.poisoned((n_tokens * n_used,), np.int32), card.poisoned((n_tokens * n_used,))
    ops.choose_experts(
        card.upload(logits), ids, shares, stream=card, scale=scale, is_normalised=is_normalised
    )
    expected, of_chosen = reference.choose_experts(
        logits, n_used, scale=scale, is_normalised=is_normalised
    )
    np.testing.assert_array_equal(card.read(ids).reshape(expected.shape), expected)
    got, bound = card.read(shares), choose_experts_bound(logits, expected, scale, is_normalised)
    sound = ~np.isnan(of_chosen).any(axis=1)
    assert_within(got.reshape(expected.shape)[sound], of_chosen[sound], bound[sound])
