"""add_shares against the FP64 reference."""

from typing import Any

import numpy as np

from m40llm import reference
from m40llm.fuzz.bounds import add_shares_bound, assert_within
from m40llm.fuzz.contents import normals
from m40llm.fuzz.definition import target
from m40llm.fuzz.strategies import seeds, sizes
from m40llm.kernels import add_shares as kernels


@target(ops=kernels, n_tokens=sizes(2, 5), n_used=sizes(4, 9), n_cols=sizes(256, 600), seed=seeds())
def add_shares(card: Any, ops: Any, n_tokens: int, n_used: int, n_cols: int, seed: int) -> None:
    rng, n_slots = np.random.default_rng(seed), n_tokens * n_used
    x, y = normals(rng, n_tokens, n_cols), normals(rng, n_slots, n_cols, spread=3)
    shares = rng.uniform(0, 1, n_slots).astype(np.float32)
    x_on = card.upload(x, read_only=False)
    ops.add_shares(x_on, card.upload(shares), card.upload(y), stream=card)
    bound = add_shares_bound(x, shares, y)
    assert_within(card.read(x_on), reference.add_shares(x, shares, y), bound)
