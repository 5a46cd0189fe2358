"""scale and add_scaled against the FP64 references."""

from typing import Any

import numpy as np

from m40llm import reference
from m40llm.fuzz.bounds import add_scaled_bound, assert_within, scale_bound
from m40llm.fuzz.contents import normals
from m40llm.fuzz.definition import target
from m40llm.fuzz.strategies import choices, seeds, sizes
from m40llm.kernels import scale as kernels

FACTORS = choices([1.0, 0.25, -3.7, 1e-3, 0.0])


@target(ops=kernels, n_tokens=sizes(2, 4), n_cols=sizes(256, 1100), factor=FACTORS, seed=seeds())
def scale(card: Any, ops: Any, n_tokens: int, n_cols: int, factor: float, seed: int) -> None:
    x = normals(np.random.default_rng(seed), n_tokens, n_cols, spread=3)
    x_on, factor = card.upload(x, read_only=False), float(np.float32(factor))
    ops.scale(x_on, factor, stream=card)
    assert_within(card.read(x_on), reference.scale(x, factor), scale_bound(x, factor))


@target(ops=kernels, n_tokens=sizes(2, 4), n_cols=sizes(256, 1100), factor=FACTORS, seed=seeds())
def add_scaled(card: Any, ops: Any, n_tokens: int, n_cols: int, factor: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = (normals(rng, n_tokens, n_cols, spread=3) for _ in range(2))
    x_on, factor = card.upload(x, read_only=False), float(np.float32(factor))
    ops.add_scaled(x_on, card.upload(y), factor, stream=card)
    expected = reference.add_scaled(x, y, factor)
    assert_within(card.read(x_on), expected, add_scaled_bound(x, y, factor))
