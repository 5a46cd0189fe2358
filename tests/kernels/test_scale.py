"""scale and add_scaled against the FP64 references."""

from typing import Any

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from m40llm import reference
from m40llm.fuzz.bounds import add_scaled_bound, assert_within, scale_bound
from m40llm.kernels.scale import add_scaled, scale

TOKENS, COLUMNS = st.integers(1, 4), st.integers(1, 1100)
FACTORS = st.sampled_from([1.0, 0.25, -3.7, 1e-3, 0.0])
SEEDS = st.integers(0, 2**32 - 1)


def drawn(n_tokens: int, n_cols: int, seed: int) -> Any:
    return np.random.default_rng(seed).normal(0, 3, (2, n_tokens, n_cols)).astype(np.float32)


@given(n_tokens=TOKENS, n_cols=COLUMNS, factor=FACTORS, seed=SEEDS)
@example(n_tokens=1, n_cols=1, factor=2.0, seed=0)
@example(n_tokens=1, n_cols=1024, factor=2.0, seed=1)
@example(n_tokens=3, n_cols=343, factor=0.5, seed=2)
def test_scale(launcher: Any, n_tokens: int, n_cols: int, factor: float, seed: int) -> None:
    x, factor = drawn(n_tokens, n_cols, seed)[0], float(np.float32(factor))
    x_on = launcher.upload(x)
    scale(x_on, factor, stream=launcher.reordered(seed))
    assert_within(launcher.read(x_on), reference.scale(x, factor), scale_bound(x, factor))


@given(n_tokens=TOKENS, n_cols=COLUMNS, factor=FACTORS, seed=SEEDS)
@example(n_tokens=1, n_cols=1, factor=2.0, seed=0)
@example(n_tokens=3, n_cols=343, factor=0.5, seed=2)
def test_add_scaled(launcher: Any, n_tokens: int, n_cols: int, factor: float, seed: int) -> None:
    (x, y), factor = drawn(n_tokens, n_cols, seed), float(np.float32(factor))
    x_on, y_on = launcher.upload(x), launcher.upload(y, read_only=True)
    add_scaled(x_on, y_on, factor, stream=launcher.reordered(seed))
    expected = reference.add_scaled(x, y, factor)
    assert_within(launcher.read(x_on), expected, add_scaled_bound(x, y, factor))
