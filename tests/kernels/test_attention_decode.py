"""Attention of single tokens: against the reference, and laws that need none."""

from typing import Any

import numpy as np
import pytest
from attention_cases import (
    Array,
    Case,
    assert_guards_hold,
    huge_cache,
    near_case,
    poisoned_cache,
    with_guards,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st

from m40llm.errors import KernelContractError
from m40llm.kernels.attention_common import HEAD_DIMS, TINY_HEAD_DIMS
from m40llm.kernels.attention_decode import (
    MIN_SPLIT_KEYS,
    attention_decode,
    partial_shape,
    split_count,
)
from m40llm.kernels.attention_merge import MAX_SPLITS


def drawn(
    rng: np.random.Generator,
    seq_lens: list[int],
    n_kv_heads: int,
    group_size: int,
    head_dim: int,
    *,
    window: int = 0,
    softcap: float = 0.0,
) -> Case:
    """One row a sequence, its last token, the rows in a drawn order."""
    shape = (n_kv_heads, max(seq_lens) + 3, head_dim)
    seq = rng.permutation(len(seq_lens)).astype(np.int32)
    spread = rng.choice([1, 20]) if softcap else 1  # scores within the cap, and far beyond
    return Case(
        q=rng.normal(0, spread, (len(seq), n_kv_heads * group_size, head_dim)).astype(np.float32),
        k=poisoned_cache(rng, seq_lens, *shape),
        v=poisoned_cache(rng, seq_lens, *shape),
        seq=seq,
        pos=(np.array(seq_lens, np.int32) - 1)[seq],
        scale=1 / np.sqrt(head_dim),
        window=window,
        softcap=softcap,
    )


def attend(
    launcher: Any, case: Case, n_splits: int, *, n_launches: int = 1, sparse: bool = False
) -> Array:
    """out, from an uninitialised workspace; guard rows and the counters are looked at."""
    n_tokens, n_heads, head_dim = case.q.shape
    partial = launcher.poisoned(partial_shape(n_tokens, n_heads, head_dim, n_splits))
    arrived = launcher.upload(np.zeros((n_tokens, n_heads), np.int32))
    buffer, out = with_guards(launcher, case.q.shape)
    arrays = case.uploaded(launcher, sparse=sparse)
    for _ in range(n_launches):
        attention_decode(*arrays, partial, arrived, out, **case.options, stream=launcher)
        assert not launcher.read(arrived).any()
    assert_guards_hold(launcher, buffer)
    return launcher.read(out)


LENGTHS = st.lists(st.integers(1, 3 * MIN_SPLIT_KEYS + 5), min_size=1, max_size=4)


@settings(max_examples=40)
@given(
    seq_lens=LENGTHS,
    n_kv_heads=st.integers(1, 2),
    group_size=st.integers(1, 9),
    head_dim_and_softcap=st.sampled_from([(32, 0.0), (64, 30.0), (80, 0.0), (256, 0.5)]),
    window=st.sampled_from([0, 0, 1, 7, 70]),
    n_splits=st.integers(1, 5),
    seed=st.integers(0, 2**32 - 1),
)
@example([1], 1, 1, (32, 0.0), 0, 1, 0)
@example([MIN_SPLIT_KEYS + 1], 2, 3, (80, 0.0), 0, 2, 1)
@example([200, 1, 64], 1, 7, (64, 30.0), 0, 4, 2)
def test_matches_the_reference(
    launcher: Any,
    seq_lens: list[int],
    n_kv_heads: int,
    group_size: int,
    head_dim_and_softcap: tuple[int, float],
    window: int,
    n_splits: int,
    seed: int,
) -> None:
    head_dim, softcap = head_dim_and_softcap
    rng = np.random.default_rng(seed)
    case = drawn(rng, seq_lens, n_kv_heads, group_size, head_dim, window=window, softcap=softcap)
    case.check(attend(launcher.reordered(seed), case, n_splits))


BOUNDARIES = [1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 191, 192, 193,
              255, 256, 257, 300]  # fmt: skip


@pytest.mark.parametrize("group_size", [1, 2, 3, 4, 5, 7, 8])
@pytest.mark.parametrize("head_dim", TINY_HEAD_DIMS + HEAD_DIMS)
def test_parity_grid(launcher: Any, head_dim: int, group_size: int) -> None:
    """Lengths around every step of a block and every split, all in one ragged batch."""
    rng = np.random.default_rng(head_dim + group_size)
    case = drawn(rng, BOUNDARIES, 2 if group_size < 3 else 1, group_size, head_dim)
    case.check(attend(launcher, case, n_splits=3))


def test_as_many_splits_as_there_can_be(launcher: Any) -> None:
    """31 to 128 splits that have keys: around a whole warp of them, and around the last."""
    lengths = [n * MIN_SPLIT_KEYS + more for n in (32, MAX_SPLITS) for more in (-64, 0, 1)]
    case = drawn(np.random.default_rng(6), lengths, 1, 1, 32)
    case.check(attend(launcher, case, MAX_SPLITS))


@settings(max_examples=15)
@given(
    seq_len=st.integers(1, 400),
    head_dim=st.sampled_from([32, 64]),
    n_splits=st.integers(2, 9),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_split_gives_the_same(
    launcher: Any, seq_len: int, head_dim: int, n_splits: int, seed: int
) -> None:
    case = drawn(np.random.default_rng(seed), [seq_len], 1, 2, head_dim)
    stream = launcher.reordered(seed)
    whole, split = attend(stream, case, 1), attend(stream, case, n_splits)
    assert (np.abs(whole - split) <= 2 * case.bound()).all()


@pytest.mark.parametrize("n_splits", [1, 4, MAX_SPLITS])
@pytest.mark.parametrize("head_dim", [32, 80, 256])
def test_mean_of_integers_is_exact(launcher: Any, head_dim: int, n_splits: int) -> None:
    """q = 0 weighs all keys alike; over a power of two of them every sum is exact."""
    rng = np.random.default_rng(n_splits)
    lengths = [1, 2, 32, 64, 128, 256]
    case = drawn(rng, lengths, 2, 3, head_dim)
    case.q[:] = 0
    for s, n in enumerate(lengths):
        case.v[s, :, :n] = rng.integers(-8, 9, (2, n, head_dim))
    np.testing.assert_array_equal(attend(launcher, case, n_splits), case.expected())


def test_largest_score_wins_wherever_it_stands(launcher: Any) -> None:
    """A key far above the others: its value comes back bit for bit, whichever split holds it."""
    rng = np.random.default_rng(0)
    case = drawn(rng, [200] * 40, 1, 1, 32)
    case.q[:] = 100
    case.k[:, :, :200] = -1
    at = rng.integers(0, 200, 40)
    case.k[np.arange(40), 0, at] = 1
    out = attend(launcher, case, 4)
    np.testing.assert_array_equal(out[:, 0], case.v[case.seq, 0, at[case.seq]])


def test_every_order_and_launch_gives_the_same_bits(launcher: Any) -> None:
    case = drawn(np.random.default_rng(3), [150, 260], 1, 4, 64)
    first = attend(launcher, case, 4, n_launches=3)
    for seed in range(6):
        again = attend(launcher.reordered(seed), case, 4)
        np.testing.assert_array_equal(first, again)


def test_beyond_the_longest_row_lies_nothing(launcher: Any) -> None:
    """The last row of the last sequence ends where the cache ends: no load goes past it."""
    rng = np.random.default_rng(4)
    case = drawn(rng, [77], 1, 2, 96)
    case.k, case.v = (np.ascontiguousarray(cache[:, :, :77]) for cache in (case.k, case.v))
    case.check(attend(launcher, case, 2))


@pytest.mark.parametrize("window", [0, 90])
def test_cache_of_more_than_2_to_the_31_elements(launcher: Any, window: int) -> None:
    """Rows at both ends of a layer whose offsets need 64 bits."""
    rng = np.random.default_rng(5)
    head_dim, max_seq_len = 64, 2**24 + 100
    k, v = (huge_cache((2, 1, max_seq_len, head_dim)) for _ in "kv")
    assert k.size > 2**31
    pos = np.array([99, max_seq_len - 1 if window else 99], np.int32)
    for cache in (k, v):
        for s, last in enumerate(pos):
            cache[s, 0, last - 99 : last + 1] = rng.standard_normal((100, head_dim))
    q = rng.standard_normal((2, 2, head_dim)).astype(np.float32)
    case = Case(q, k, v, np.array([0, 1], np.int32), pos, 0.125, window)
    near_case(case, 100).check(attend(launcher, case, 2, sparse=True))


def test_splits_fill_the_card_and_no_more() -> None:
    assert split_count(1, 32, 8, 4096, n_sms=132) == 64
    assert split_count(8, 32, 8, 4096, n_sms=24) == 2
    assert split_count(1, 32, 8, 100, n_sms=132) == 2
    assert split_count(1, 1, 1, 10**6, n_sms=132) == MAX_SPLITS


def test_wrong_arguments_are_named(launcher: Any) -> None:
    case = drawn(np.random.default_rng(0), [4], 1, 1, 32)
    stream = launcher
    with pytest.raises(KernelContractError, match=r"partial: expected 1 to 128 splits, got 129"):
        attend(stream, case, MAX_SPLITS + 1)
    case.k = case.k.astype(np.float32)
    with pytest.raises(KernelContractError, match=r"k_cache: expected float16\["):
        attend(stream, case, 1)
