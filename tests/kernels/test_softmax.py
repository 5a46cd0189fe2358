"""softmax of rows against the FP64 reference."""

from typing import Any

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from m40llm.kernels.softmax import N_THREADS, softmax
from m40llm.reference import softmax as reference

U = 2.0**-24


@given(
    n_rows=st.integers(1, 4),
    n=st.one_of(st.integers(1, 70), st.integers(254, 258), st.just(1500)),
    in_place=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
@example(n_rows=1, n=1, in_place=True, seed=0)
@example(n_rows=2, n=257, in_place=True, seed=1)
def test_softmax(launcher: Any, n_rows: int, n: int, in_place: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(0, rng.choice([0.1, 5, 30]), (n_rows, n)).astype(np.float32)
    x[rng.random(x.shape) < 0.1] = -np.inf
    x[:, rng.integers(n)] = 3.0
    on_device = launcher.upload(x)
    out = on_device if in_place else launcher.poisoned(x.shape)
    softmax(on_device, out, stream=launcher.reordered(seed))
    expected = reference(x)
    # x - max rounds once, which exp makes absolute; exp within 2 units in the last place, twice
    # (here and in the sum); the sum; the quotient.
    with np.errstate(invalid="ignore"):
        shifted = np.where(np.isfinite(x), x.max(axis=1, keepdims=True) - x, 0)
    n_sums = -(-n // N_THREADS) + 5 + N_THREADS // 32
    in_sum = (expected * shifted).sum(axis=1, keepdims=True)
    bound = (shifted + in_sum + 4 + 4 + n_sums + 2) * U * expected
    assert (np.abs(launcher.read(out) - expected) <= 1.01 * bound + 2.0**-126).all()
