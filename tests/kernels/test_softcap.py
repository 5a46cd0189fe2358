"""softcap against the FP64 reference."""

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from m40llm import reference
from m40llm.errors import KernelContractError
from m40llm.fuzz.bounds import assert_within, softcap_bound
from m40llm.kernels.softcap import softcap


def capped(launcher: Any, x: Any, cap: float) -> Any:
    x_on = launcher.upload(x)
    softcap(x_on, cap, stream=launcher)
    return launcher.read(x_on)


@given(
    n_tokens=st.integers(1, 4),
    n_cols=st.integers(1, 1100),
    cap=st.floats(0.01, 1000.0),
    spread=st.sampled_from([1e-3, 0.3, 1.0, 5.0, 100.0]),  # caps: from the identity to the cap
    seed=st.integers(0, 2**32 - 1),
)
@example(n_tokens=1, n_cols=1, cap=30.0, spread=1.0, seed=0)
@example(n_tokens=1, n_cols=1024, cap=30.0, spread=5.0, seed=1)
@example(n_tokens=3, n_cols=343, cap=50.0, spread=0.3, seed=2)
def test_softcap(
    launcher: Any, n_tokens: int, n_cols: int, cap: float, spread: float, seed: int
) -> None:
    x = np.random.default_rng(seed).normal(0, spread * cap, (n_tokens, n_cols)).astype(np.float32)
    expected = reference.softcap(x, cap)
    assert_within(capped(launcher.reordered(seed), x, cap), expected, softcap_bound(expected))


def test_far_ends(launcher: Any) -> None:
    """The cap itself, of its sign; NaN stays visible, and what is small is left as it is."""
    x = np.array([[np.inf, -np.inf, 1e30, -1e30, 0.0, -0.0, 1e-30, np.nan]], np.float32)
    got = capped(launcher, x, 32.0)
    np.testing.assert_array_equal(got[0, :6], np.float32([32, -32, 32, -32, 0, -0.0]))
    assert np.signbit(got[0, 5])
    assert got[0, 6] == pytest.approx(1e-30, rel=1e-6)
    assert np.isnan(got[0, 7])


def test_a_cap_of_nothing_is_named(launcher: Any) -> None:
    for cap in (0.0, -1.0, float("nan")):
        with pytest.raises(KernelContractError, match="cap: expected a number above 0, got"):
            capped(launcher, np.ones((1, 4), np.float32), cap)
