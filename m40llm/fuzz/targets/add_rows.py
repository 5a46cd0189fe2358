"""add_rows against the FP64 reference."""

from typing import Any

import numpy as np

from m40llm import reference
from m40llm.fuzz.bounds import add_rows_bound, assert_within
from m40llm.fuzz.contents import normals
from m40llm.fuzz.definition import target
from m40llm.fuzz.strategies import seeds, sizes
from m40llm.kernels import add_rows as kernels


@target(ops=kernels, n_tokens=sizes(2, 6), n_cols=sizes(256, 600), seed=seeds())
def add_rows(card: Any, ops: Any, n_tokens: int, n_cols: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.permutation(n_tokens)[: rng.integers(1, n_tokens + 1)].astype(np.int32)
    x, y = normals(rng, n_tokens, n_cols), normals(rng, rows.size, n_cols, spread=3)
    shares = rng.uniform(0, 1, rows.size).astype(np.float32)
    x_on = card.upload(x, read_only=False)
    ops.add_rows(x_on, card.upload(rows), card.upload(shares), card.upload(y), stream=card)
    bound = add_rows_bound(x, rows, shares, y)
    assert_within(card.read(x_on), reference.add_rows(x, rows, shares, y), bound)
