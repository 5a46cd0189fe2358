"""softcap against the FP64 reference, from where it is the identity to where it is the cap."""

from typing import Any

import numpy as np

from m40llm import reference
from m40llm.fuzz.bounds import assert_within, softcap_bound
from m40llm.fuzz.contents import normals
from m40llm.fuzz.definition import target
from m40llm.fuzz.strategies import choices, seeds, sizes
from m40llm.kernels import softcap as kernels

SPREADS = choices([1.0, 1e-3, 30.0, 1000.0])


@target(
    ops=kernels,
    n_tokens=sizes(2, 4),
    n_cols=sizes(256, 1100),
    cap=choices([30.0, 0.5, 7.3]),
    spread=SPREADS,
    seed=seeds(),
)
def softcap(
    card: Any, ops: Any, n_tokens: int, n_cols: int, cap: float, spread: float, seed: int
) -> None:
    x = normals(np.random.default_rng(seed), n_tokens, n_cols, spread=spread)
    x_on = card.upload(x, read_only=False)
    ops.softcap(x_on, cap, stream=card)
    expected = reference.softcap(x, cap)
    assert_within(card.read(x_on), expected, softcap_bound(expected))
