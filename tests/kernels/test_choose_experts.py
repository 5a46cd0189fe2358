"""choose_experts: ids as NumPy's stable sort has them, shares within the bound of a softmax."""

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from m40llm import reference
from m40llm.device.cpu.experts import choose_experts as choose_on_cpu
from m40llm.errors import KernelContractError
from m40llm.fuzz.bounds import assert_within, choose_experts_bound
from m40llm.kernels.choose_experts import choose_experts

Chosen = tuple[np.ndarray, np.ndarray]


def run(launcher: Any, logits: Any, n_used: int, **how: Any) -> Chosen:
    """(ids, shares), [n_tokens, n_used] both."""
    shape = (len(logits), n_used)
    ids, shares = (launcher.poisoned((shape[0] * n_used,), kind) for kind in (np.int32, np.float32))
    choose_experts(launcher.upload(logits, read_only=True), ids, shares, stream=launcher, **how)
    return launcher.read(ids).reshape(shape), launcher.read(shares).reshape(shape)


def run_on_cpu(logits: Any, n_used: int, scale: float = 1.0, is_normalised: bool = True) -> Chosen:
    shape = (len(logits), n_used)
    ids, shares = np.empty(shape[0] * n_used, np.int32), np.empty(shape[0] * n_used, np.float32)
    choose_on_cpu(logits, scale, is_normalised, ids, shares)
    return ids.reshape(shape), shares.reshape(shape)


@given(
    n_tokens=st.integers(1, 3), n_experts=st.integers(1, 300), part=st.floats(0, 1),
    spread=st.sampled_from([0.5, 3.0, 40.0]), scale=st.sampled_from([1.0, 0.22]),
    is_normalised=st.booleans(), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
@example(3, 128, 8 / 128, 3.0, 1.0, True, 0)
@example(1, 256, 1.0, 3.0, 1.0, False, 0)
@example(1, 33, 1.0, 40.0, 1.0, True, 1)
@settings(max_examples=40)
def test_against_the_reference(
    launcher: Any, n_tokens: int, n_experts: int, part: float, spread: float, scale: float,
    is_normalised: bool, seed: int,
) -> None:  # fmt: skip
    rng, n_used = np.random.default_rng(seed), max(round(part * n_experts), 1)
    logits = rng.normal(0, spread, (n_tokens, n_experts)).astype(np.float32)
    how: Any = {"scale": scale, "is_normalised": is_normalised}
    expected, of_chosen = reference.choose_experts(logits, n_used, **how)
    bound = choose_experts_bound(logits, expected, scale, is_normalised)
    for ids, shares in (
        run(launcher.reordered(seed), logits, n_used, **how),
        run_on_cpu(logits, n_used, **how),
    ):
        np.testing.assert_array_equal(ids, expected)
        assert_within(shares, of_chosen, bound)


@given(n_experts=st.integers(2, 200), n_values=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))
@example(n_experts=64, n_values=1, seed=0)
@settings(max_examples=30)
def test_among_equals_the_lower_id(launcher: Any, n_experts: int, n_values: int, seed: int) -> None:
    """Powers of two as shares: exact, whatever the order."""
    rng, n_used = np.random.default_rng(seed), max(n_experts // 3, 1)
    logits = rng.choice(np.array([0.0, -0.0, -3.0, 2.0], np.float32)[:n_values], (2, n_experts))
    expected = np.argsort(-logits, axis=1, kind="stable")[:, :n_used]
    for ids, _ in (run(launcher, logits, n_used), run_on_cpu(logits, n_used)):
        np.testing.assert_array_equal(ids, expected)


def test_equal_logits_share_exactly(launcher: Any) -> None:
    logits = np.full((2, 128), 3.5, np.float32)
    for n_used in (1, 4, 8, 64):
        for is_normalised, share in ((True, 1 / n_used), (False, 1 / 128)):
            ids, shares = run(launcher, logits, n_used, is_normalised=is_normalised)
            np.testing.assert_array_equal(ids, [list(range(n_used))] * 2)
            np.testing.assert_array_equal(shares, np.full((2, n_used), share, np.float32))


def test_large_logits_do_not_overflow(launcher: Any) -> None:
    logits = np.array([[1e30, -1e30, 3e38]], np.float32)
    for ids, shares in (run(launcher, logits, 3), run_on_cpu(logits, 3)):
        np.testing.assert_array_equal(ids, [[2, 0, 1]])
        np.testing.assert_array_equal(shares, [[1, 0, 0]])


def test_nan_is_chosen_last(launcher: Any) -> None:
    """Ids stay within the experts, whatever the logits."""
    logits = np.array([[np.nan, -np.inf, 1.0, np.nan], [np.nan] * 4], np.float32)
    for ids, shares in (run(launcher, logits, 2), run_on_cpu(logits, 2)):
        np.testing.assert_array_equal(ids, [[2, 1], [0, 1]])
        np.testing.assert_array_equal(shares, [[1, 0], [np.nan, np.nan]])


def test_contract(launcher: Any) -> None:
    logits, ids = np.zeros((2, 4), np.float32), np.zeros(4, np.int32)
    with pytest.raises(KernelContractError, match=r"shares: expected float32\[4\]"):
        choose_experts(logits, ids, np.zeros(2, np.float32), stream=launcher)
    for n_slots in (0, 3, 10):
        ids, shares = np.zeros(n_slots, np.int32), np.zeros(n_slots, np.float32)
        with pytest.raises(KernelContractError, match="ids: expected 1 to 4 for each of 2 tokens"):
            choose_experts(logits, ids, shares, stream=launcher)
    with pytest.raises(KernelContractError, match="logits: expected 1 to"):
        choose_experts(np.zeros((2, 0), np.float32), ids, shares, stream=launcher)
