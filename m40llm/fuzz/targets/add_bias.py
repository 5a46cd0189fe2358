"""add_bias: whole numbers, by ==."""

from typing import Any

import numpy as np

from m40llm import reference
from m40llm.fuzz.contents import integers
from m40llm.fuzz.definition import target
from m40llm.fuzz.strategies import seeds, sizes
from m40llm.kernels import add_bias as kernels


@target(ops=kernels, n_tokens=sizes(2, 4), n_rows=sizes(256, 600), seed=seeds())
def add_bias(card: Any, ops: Any, n_tokens: int, n_rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    bias, before = integers(rng, n_rows, most=99), integers(rng, n_tokens, n_rows, most=99)
    out = card.upload(before, read_only=False)
    ops.add_bias(card.upload(bias), out, stream=card)
    np.testing.assert_array_equal(card.read(out), reference.add_bias(bias, before))
