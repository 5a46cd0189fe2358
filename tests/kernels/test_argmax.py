"""argmax against NumPy: ids by ==, ties, NaN and infinities included."""

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from m40llm.errors import KernelContractError
from m40llm.kernels.argmax import argmax
from m40llm.reference import argmax as reference

SEEDS = st.integers(0, 2**32 - 1)
SPREADS = st.sampled_from([0.0, 1.0, 30.0])  # 0: all equal; 1: many ties; 30: few


def rough_logits(n_rows: int, n: int, spread: float, seed: int) -> np.ndarray:
    """Whole numbers, so that many are equal, with zeros of both signs, infinities and NaN."""
    rng = np.random.default_rng(seed)
    x = np.round(rng.normal(0, 1, (n_rows, n)) * spread).astype(np.float32)
    odd = np.array([np.nan, -np.inf, 0.0, -0.0, 1e38, -1e-45, np.inf], np.float32)
    n_odd = rng.integers(3, 8)  # without the infinity at times, without the large one at others
    return np.where(rng.random(x.shape) < 0.2, rng.choice(odd[:n_odd], x.shape), x)


@given(n_rows=st.integers(1, 4), n=st.integers(1, 300), spread=SPREADS, seed=SEEDS)
@example(n_rows=1, n=1, spread=0.0, seed=0)
@example(n_rows=2, n=65, spread=0.0, seed=1)
def test_argmax(launcher: Any, n_rows: int, n: int, spread: float, seed: int) -> None:
    x = rough_logits(n_rows, n, spread, seed)
    out = launcher.poisoned((n_rows,), np.int32)
    stream = launcher.reordered(seed)
    argmax(launcher.upload(x, read_only=True), out, stream=stream, n_threads=64)
    np.testing.assert_array_equal(launcher.read(out), reference(x))


def test_whole_vocabulary(launcher: Any) -> None:
    x = np.random.default_rng(0).normal(0, 4, (2, 128_256)).astype(np.float32)
    x[1, [70_001, 128_255]] = 50.0
    out = launcher.poisoned((2,), np.int32)
    argmax(launcher.upload(x), out, stream=launcher)
    np.testing.assert_array_equal(launcher.read(out), [x[0].argmax(), 70_001])


def test_nothing_but_nan(launcher: Any) -> None:
    out = launcher.poisoned((1,), np.int32)
    argmax(launcher.upload(np.full((1, 9), np.nan, np.float32)), out, stream=launcher)
    assert launcher.read(out)[0] == 0


def test_contract(launcher: Any) -> None:
    with pytest.raises(KernelContractError, match="rows of 1 to 4194304, got 0"):
        argmax(np.zeros((1, 0), np.float32), np.zeros(1, np.int32), stream=launcher)
