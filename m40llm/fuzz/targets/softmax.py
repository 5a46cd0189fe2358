"""softmax of rows against the FP64 reference."""

from typing import Any

import numpy as np

from m40llm import reference
from m40llm.fuzz.bounds import assert_within, softmax_bound
from m40llm.fuzz.contents import normals
from m40llm.fuzz.definition import target
from m40llm.fuzz.strategies import flags, seeds, sizes
from m40llm.kernels import softmax as kernels
from m40llm.kernels.softmax import N_THREADS


@target(ops=kernels, n_rows=sizes(2, 4), n=sizes(N_THREADS), in_place=flags(), seed=seeds())
def softmax(card: Any, ops: Any, n_rows: int, n: int, in_place: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = normals(rng, n_rows, n, spread=float(rng.choice([0.1, 5, 30])))
    x[rng.random(x.shape) < 0.1] = -np.inf
    x[:, rng.integers(n)] = 3.0  # one entry of each row is finite
    x_on = card.upload(x, read_only=not in_place)
    out = x_on if in_place else card.guarded(x.shape)
    ops.softmax(x_on, out, stream=card)
    expected = reference.softmax(x)
    assert_within(card.read(out), expected, softmax_bound(x, expected, N_THREADS))
