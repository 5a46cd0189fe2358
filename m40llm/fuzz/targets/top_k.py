"""top_k against NumPy's stable sort, by ==."""

from typing import Any

import numpy as np

from m40llm import reference
from m40llm.fuzz.contents import rough_logits
from m40llm.fuzz.definition import target
from m40llm.fuzz.strategies import choices, flags, seeds, sizes
from m40llm.kernels import top_k as kernels

N_THREADS = 64  # of the 512
SPREADS = choices([0.0, 1.0, 30.0])


@target(
    ops=kernels,
    n_rows=sizes(2, 3),
    n=sizes(N_THREADS, 400),
    k=sizes(16, N_THREADS),
    spread=SPREADS,
    crowded=flags(),
    seed=seeds(),
)
def top_k(
    card: Any, ops: Any, n_rows: int, n: int, k: int, spread: float, crowded: bool, seed: int
) -> None:
    """crowded: one thread has the largest logits, one the smallest; nearly all keys pass, and the
    kernel's list overflows."""
    x, k = rough_logits(seed, n_rows, n, spread), min(n, k)
    if crowded:
        x[:, :n:N_THREADS] += 100
        x[:, 1:n:N_THREADS] -= 100
    values, ids = card.guarded((n_rows, k)), card.poisoned((n_rows, k), np.int32)
    ops.top_k(card.upload(x), values, ids, stream=card, n_threads=N_THREADS)
    expected_values, expected_ids = reference.top_k(x, k)
    np.testing.assert_array_equal(card.read(ids), expected_ids)
    np.testing.assert_array_equal(card.read(values), expected_values)
