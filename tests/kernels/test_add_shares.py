"""add_shares: exact on integers, in the order of the slots, and against the FP64 reference."""

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from matmul_cases import integers

from m40llm import reference
from m40llm.errors import KernelContractError
from m40llm.fuzz.bounds import add_shares_bound, assert_within
from m40llm.kernels.add_shares import add_shares

SIZES: dict[str, Any] = {
    "n_tokens": st.integers(1, 4),
    "n_used": st.integers(1, 9),
    "n_cols": st.integers(1, 600),
    "seed": st.integers(0, 2**32 - 1),
}


def run(launcher: Any, x: Any, shares: Any, y: Any) -> Any:
    x_on = launcher.upload(x)
    others = (launcher.upload(a, read_only=True) for a in (shares, y))
    add_shares(x_on, *others, stream=launcher)
    return launcher.read(x_on)


@given(**SIZES)
@example(n_tokens=2, n_used=8, n_cols=257, seed=0)
def test_integers_are_exact(
    launcher: Any, n_tokens: int, n_used: int, n_cols: int, seed: int
) -> None:
    rng, n_slots = np.random.default_rng(seed), n_tokens * n_used
    x, y = integers(rng, n_tokens, n_cols), integers(rng, n_slots, n_cols)
    shares = integers(rng, n_slots)
    got = run(launcher.reordered(seed), x, shares, y)
    np.testing.assert_array_equal(got, reference.add_shares(x, shares, y))


@given(**SIZES)
@example(n_tokens=1, n_used=1, n_cols=1, seed=0)
@example(n_tokens=2, n_used=8, n_cols=256, seed=1)
def test_ordinary_numbers_within_the_bound(
    launcher: Any, n_tokens: int, n_used: int, n_cols: int, seed: int
) -> None:
    rng, n_slots = np.random.default_rng(seed), n_tokens * n_used
    x = rng.standard_normal((n_tokens, n_cols), np.float32)
    y = rng.standard_normal((n_slots, n_cols), np.float32)
    shares = rng.uniform(0, 1, n_slots).astype(np.float32)
    expected = reference.add_shares(x, shares, y)
    assert_within(run(launcher, x, shares, y), expected, add_shares_bound(x, shares, y))


def test_in_the_order_of_the_slots(launcher: Any) -> None:
    """In FP32 1e8 + 1 - 1e8 is 0, in this order only."""
    y = np.array([[1e8], [1.0], [-1e8], [1.0]], np.float32)
    got = run(launcher, np.zeros((1, 1), np.float32), np.ones(4, np.float32), y)
    np.testing.assert_array_equal(got, [[1.0]])


def test_contract(launcher: Any) -> None:
    x, y = np.zeros((2, 3), np.float32), np.zeros((4, 3), np.float32)
    with pytest.raises(KernelContractError, match=r"y: expected float32\[2, 3\]"):
        add_shares(x, np.ones(2, np.float32), y, stream=launcher)
    with pytest.raises(KernelContractError, match="shares: expected as many for each of 2 tokens"):
        add_shares(x, np.ones(3, np.float32), y[:3], stream=launcher)
