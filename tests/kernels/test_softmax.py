"""softmax of rows against the FP64 reference."""

from typing import Any

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from m40llm.fuzz.bounds import assert_within, softmax_bound
from m40llm.kernels.softmax import N_THREADS, softmax
from m40llm.reference import softmax as reference


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
    assert_within(launcher.read(out), expected, softmax_bound(x, expected, N_THREADS))
