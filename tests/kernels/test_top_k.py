"""top_k against NumPy's stable sort, by ==."""

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from test_argmax import SEEDS, SPREADS, rough_logits

from m40llm.errors import KernelContractError
from m40llm.kernels.top_k import top_k
from m40llm.reference import top_k as reference


def check(launcher: Any, x: np.ndarray, k: int, seed: int, n_threads: int) -> None:
    values, ids = launcher.poisoned((len(x), k)), launcher.poisoned((len(x), k), np.int32)
    stream = launcher.reordered(seed)
    top_k(launcher.upload(x, read_only=True), values, ids, stream=stream, n_threads=n_threads)
    expected_values, expected_ids = reference(x, k)
    np.testing.assert_array_equal(launcher.read(ids), expected_ids)
    np.testing.assert_array_equal(launcher.read(values), expected_values)


@given(
    n_rows=st.integers(1, 3), n=st.integers(1, 400), k=st.integers(1, 64), spread=SPREADS,
    seed=SEEDS,
)  # fmt: skip
@example(n_rows=1, n=1, k=1, spread=0.0, seed=0)
@example(n_rows=1, n=400, k=64, spread=0.0, seed=1)
def test_top_k(launcher: Any, n_rows: int, n: int, k: int, spread: float, seed: int) -> None:
    check(launcher, rough_logits(n_rows, n, spread, seed), min(n, k), seed, 64)


@given(k=st.integers(1, 64), seed=SEEDS)
@example(k=64, seed=0)
def test_largest_in_one_thread(launcher: Any, k: int, seed: int) -> None:
    """One thread has the largest, one the smallest: nearly all keys pass, the list overflows."""
    x = np.random.default_rng(seed).normal(0, 1, (1, 640)).astype(np.float32)
    x[0, :640:64] += 100
    x[0, 1:640:64] -= 100
    check(launcher, x, k, seed, 64)


def test_whole_vocabulary(launcher: Any) -> None:
    x = np.random.default_rng(0).normal(0, 4, (2, 128_256)).astype(np.float32)
    x[1] = np.round(x[1])
    values, ids = launcher.poisoned((2, 64)), launcher.poisoned((2, 64), np.int32)
    top_k(launcher.upload(x), values, ids, stream=launcher)
    np.testing.assert_array_equal(launcher.read(ids), reference(x, 64)[1])


def test_contract(launcher: Any) -> None:
    x = np.zeros((1, 5), np.float32)
    with pytest.raises(KernelContractError, match="k of 1 to 5, got 6"):
        top_k(x, np.zeros((1, 6), np.float32), np.zeros((1, 6), np.int32), stream=launcher)
