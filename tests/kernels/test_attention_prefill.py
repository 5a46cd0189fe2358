"""Attention of runs of new tokens: against the reference, and laws that need none."""

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
from m40llm.kernels.attention_common import HEAD_DIMS
from m40llm.kernels.attention_decode import attention_decode, partial_shape
from m40llm.kernels.attention_prefill import attention_prefill
from m40llm.kernels.attention_tiles import BM, tile_keys

Run = tuple[int, int]  # how many new tokens, and how many were cached before them


def drawn(
    rng: np.random.Generator,
    runs: list[Run],
    n_kv_heads: int,
    group_size: int,
    head_dim: int,
    *,
    window: int = 0,
    softcap: float = 0.0,
) -> Case:
    """Ragged runs, each of a sequence of its own, the sequences in a drawn order."""
    order = rng.permutation(len(runs)).astype(np.int32)
    seq_lens = [n_new + n_before for n_new, n_before in runs]
    shape = (n_kv_heads, max(seq_lens) + 3, head_dim)
    seq = np.concatenate([np.full(runs[s][0], s, np.int32) for s in order])
    pos = np.concatenate([runs[s][1] + np.arange(runs[s][0], dtype=np.int32) for s in order])
    spread = rng.choice([1, 20]) if softcap else 1  # scores within the cap, and far beyond
    return Case(
        q=rng.normal(0, spread, (len(seq), n_kv_heads * group_size, head_dim)).astype(np.float32),
        k=poisoned_cache(rng, seq_lens, *shape),
        v=poisoned_cache(rng, seq_lens, *shape),
        seq=seq,
        pos=pos.astype(np.int32),
        scale=1 / np.sqrt(head_dim),
        window=window,
        softcap=softcap,
    )


def attend(launcher: Any, case: Case, *, sparse: bool = False) -> Array:
    buffer, out = with_guards(launcher, case.q.shape)
    arrays = case.uploaded(launcher, sparse=sparse)
    attention_prefill(*arrays, out, **case.options, stream=launcher)
    assert_guards_hold(launcher, buffer)
    return launcher.read(out)


RUNS = st.lists(
    st.tuples(st.integers(1, 80), st.sampled_from([0, 0, 1, 63, 64, 130])), min_size=1, max_size=3
)


@settings(max_examples=25)
@given(
    runs=RUNS,
    n_kv_heads=st.integers(1, 2),
    group_size=st.integers(1, 9),
    head_dim_and_softcap=st.sampled_from(
        [(32, 0.0), (64, 30.0), (80, 0.0), (256, 0.5), (256, 0.0)]
    ),
    window=st.sampled_from([0, 0, 1, 7, 70]),
    seed=st.integers(0, 2**32 - 1),
)
@example([(1, 0)], 1, 1, (32, 0.0), 0, 0)
@example([(BM, 0), (1, 5), (BM + 1, 128)], 1, 3, (64, 30.0), 7, 1)
@example([(1, 0)] * 30, 1, 4, (80, 0.0), 0, 2)
def test_matches_the_reference(
    launcher: Any,
    runs: list[Run],
    n_kv_heads: int,
    group_size: int,
    head_dim_and_softcap: tuple[int, float],
    window: int,
    seed: int,
) -> None:
    head_dim, softcap = head_dim_and_softcap
    rng = np.random.default_rng(seed)
    case = drawn(rng, runs, n_kv_heads, group_size, head_dim, window=window, softcap=softcap)
    case.check(attend(launcher.reordered(seed), case))


@pytest.mark.parametrize("group_size", [1, 3, 4])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_parity_grid(launcher: Any, head_dim: int, group_size: int) -> None:
    """Runs whose lengths and starts lie around every edge of a tile."""
    rng = np.random.default_rng(head_dim + group_size)
    tile_tokens, bn = BM // group_size, tile_keys(head_dim)
    runs = [(n, 0) for n in (1, tile_tokens - 1, tile_tokens, tile_tokens + 1) if n]
    runs += [
        (2, n_before)
        for n_before in (1, 15, 16, 17, 63, 64, bn - 2, bn - 1, bn, 2 * bn - 1, 2 * bn)
    ]
    case = drawn(rng, runs, 2 if group_size == 1 else 1, group_size, head_dim)
    case.check(attend(launcher, case))


@pytest.mark.parametrize("head_dim", [32, 80, 256])
def test_mean_of_integers_is_exact(launcher: Any, head_dim: int) -> None:
    """q = 0 weighs all keys alike; over a power of two of them every sum is exact."""
    rng = np.random.default_rng(head_dim)
    case = drawn(rng, [(1, n - 1) for n in (1, 2, 16, 64, 128, 256)], 2, 3, head_dim)
    case.q[:] = 0
    for s, n in enumerate((1, 2, 16, 64, 128, 256)):
        case.v[s, :, :n] = rng.integers(-8, 9, (2, n, head_dim))
    np.testing.assert_array_equal(attend(launcher, case), case.expected())


def test_first_token_sees_only_itself(launcher: Any) -> None:
    case = drawn(np.random.default_rng(1), [(70, 0), (5, 0)], 1, 2, 64)
    out, first = attend(launcher, case), np.flatnonzero(case.pos == 0)
    np.testing.assert_array_equal(out[first, 1], case.v[case.seq[first], 0, 0])


@settings(max_examples=10)
@given(
    n_tokens=st.integers(1, 150),
    window=st.sampled_from([0, 5, 100]),
    head_dim=st.sampled_from([32, 64]),
    seed=st.integers(0, 2**32 - 1),
)
def test_decode_equals_prefill_of_one_more(
    launcher, n_tokens: int, window: int, head_dim: int, seed: int
) -> None:
    case = drawn(np.random.default_rng(seed), [(n_tokens + 1, 0)], 1, 2, head_dim, window=window)
    last = Case(case.q[-1:], case.k, case.v, case.seq[-1:], case.pos[-1:], case.scale, window)
    shape = partial_shape(1, 2, head_dim, 2)
    out = launcher.poisoned(last.q.shape)
    partial, arrived = launcher.poisoned(shape), launcher.upload(np.zeros((1, 2), np.int32))
    arrays = last.uploaded(launcher)
    attention_decode(*arrays, partial, arrived, out, **last.options, stream=launcher)
    error = np.abs(launcher.read(out) - attend(launcher, case)[-1:])
    assert (error <= 2 * last.bound()).all()


def test_prefill_in_chunks_equals_prefill_at_once(launcher: Any) -> None:
    case = drawn(np.random.default_rng(2), [(100, 30)], 1, 3, 64)
    whole, bound = attend(launcher, case), case.bound()
    for chunk in (slice(0, 37), slice(37, 38), slice(38, 100)):
        part = Case(
            case.q[chunk], case.k, case.v, case.seq[chunk], case.pos[chunk], case.scale
        )  # fmt: skip
        assert (np.abs(attend(launcher, part) - whole[chunk]) <= 2 * bound[chunk]).all()


def test_every_order_gives_the_same_bits(launcher: Any) -> None:
    case = drawn(np.random.default_rng(3), [(40, 70), (9, 0)], 1, 2, 64)
    first = attend(launcher, case)
    for seed in range(4):
        np.testing.assert_array_equal(first, attend(launcher.reordered(seed), case))


def test_cache_of_more_than_2_to_the_31_elements(launcher: Any) -> None:
    """Rows at the end of a layer whose offsets need 64 bits."""
    rng = np.random.default_rng(5)
    max_seq_len = 2**24 + 100
    k, v = (huge_cache((2, 1, max_seq_len, 64)) for _ in "kv")
    for cache in (k, v):
        cache[1, 0, -100:] = rng.standard_normal((100, 64))
    q = rng.standard_normal((20, 2, 64)).astype(np.float32)
    pos = np.arange(max_seq_len - 20, max_seq_len, dtype=np.int32)
    case = Case(q, k, v, np.ones(20, np.int32), pos, 0.125, window=80)
    near_case(case, 100).check(attend(launcher, case, sparse=True))


def test_wrong_arguments_are_named(launcher: Any) -> None:
    case = drawn(np.random.default_rng(0), [(4, 0)], 1, 65, 32)
    with pytest.raises(KernelContractError, match="q: expected groups of at most 64 heads"):
        attend(launcher, case)
    case = drawn(np.random.default_rng(0), [(4, 0)], 2, 1, 32)
    case.q = np.concatenate([case.q, case.q[:, :1]], axis=1)
    with pytest.raises(KernelContractError, match=r"q: 3 heads are no multiple of 2 of the cache"):
        attend(launcher, case)
