"""Attention over a cache in Q8_0: of single tokens and of runs, both against the reference."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from attention_cases import Array, Case, assert_guards_hold, poisoned_cache, with_guards
from hypothesis import example, given, settings
from hypothesis import strategies as st

from m40llm.errors import KernelContractError
from m40llm.fuzz.attention import Q8Case
from m40llm.kernels.attention_common import HEAD_DIMS, QUANTS_PER_BLOCK
from m40llm.kernels.attention_decode import MIN_SPLIT_KEYS, attention_decode_q8, partial_shape
from m40llm.kernels.attention_prefill import attention_prefill_q8

OF_BLOCKS = [head_dim for head_dim in HEAD_DIMS if head_dim % QUANTS_PER_BLOCK == 0]
RUNS = st.lists(st.tuples(st.integers(1, 24), st.integers(0, 130)), min_size=1, max_size=2)


def drawn(
    rng: np.random.Generator, runs: list[tuple[int, int]], heads: tuple[int, int], head_dim: int,
    *, window: int = 0, softcap: float = 0.0,
) -> Case:  # fmt: skip
    """Rows of each sequence: n of them behind n_before that are cached; heads: K/V's, a group's."""
    n_kv_heads, group_size = heads
    seq_lens = [n + n_before for n, n_before in runs]
    shape = (n_kv_heads, max(seq_lens) + 3, head_dim)
    seq = np.concatenate([np.full(n, s, np.int32) for s, (n, _) in enumerate(runs)])
    pos = np.concatenate([np.arange(b, b + n, dtype=np.int32) for n, b in runs])
    return Case(
        q=rng.standard_normal((len(seq), n_kv_heads * group_size, head_dim)).astype(np.float32),
        k=poisoned_cache(rng, seq_lens, *shape),
        v=poisoned_cache(rng, seq_lens, *shape),
        seq=seq,
        pos=pos,
        scale=1 / np.sqrt(head_dim),
        window=window,
        softcap=softcap,
    )


def last_rows(case: Q8Case) -> Q8Case:
    """The same with the last row of each sequence alone."""
    last = np.flatnonzero(np.append(case.seq[1:] != case.seq[:-1], True))
    rows = {"q": case.q[last], "seq": case.seq[last], "pos": case.pos[last]}
    return replace(case, **rows)


def decode(launcher: Any, case: Q8Case, n_splits: int) -> Array:
    n_tokens, n_heads, head_dim = case.q.shape
    partial = launcher.poisoned(partial_shape(n_tokens, n_heads, head_dim, n_splits))
    arrived = launcher.upload(np.zeros((n_tokens, n_heads), np.int32))
    buffer, out = with_guards(launcher, case.q.shape)
    arrays = case.uploaded(launcher)
    attention_decode_q8(*arrays, partial, arrived, out, **case.options, stream=launcher)
    assert not launcher.read(arrived).any()
    assert_guards_hold(launcher, buffer)
    return launcher.read(out)


def prefill(launcher: Any, case: Q8Case) -> Array:
    buffer, out = with_guards(launcher, case.q.shape)
    attention_prefill_q8(*case.uploaded(launcher), out, **case.options, stream=launcher)
    assert_guards_hold(launcher, buffer)
    return launcher.read(out)


@settings(max_examples=15)
@given(
    runs=RUNS,
    n_kv_heads=st.integers(1, 2),
    group_size=st.integers(1, 9),
    form=st.sampled_from([(32, 0.0), (64, 30.0), (96, 0.0)]),
    window=st.sampled_from([0, 0, 1, 7, 70]),
    n_splits=st.integers(1, 5),
    seed=st.integers(0, 2**32 - 1),
)
@example([(1, 0)], 1, 1, (32, 0.0), 0, 1, 0)
@example([(1, MIN_SPLIT_KEYS)], 2, 3, (96, 0.0), 0, 2, 1)
@example([(20, 130), (1, 0)], 1, 7, (64, 30.0), 70, 4, 2)
def test_both_match_the_reference(
    launcher: Any, runs: list[tuple[int, int]], n_kv_heads: int, group_size: int,
    form: tuple[int, float], window: int, n_splits: int, seed: int,
) -> None:  # fmt: skip
    """Within the bound of FP32 over what the blocks stand for, exactly; and so of each other."""
    head_dim, softcap = form
    rng, heads = np.random.default_rng(seed), (n_kv_heads, group_size)
    case = drawn(rng, runs, heads, head_dim, window=window, softcap=softcap).quantised()
    stream = launcher.reordered(seed)
    case.check(prefill(stream, case))
    last = last_rows(case)
    last.check(decode(stream, last, n_splits))


@pytest.mark.parametrize("group_size", [1, 3, 7])
@pytest.mark.parametrize("head_dim", OF_BLOCKS)
def test_every_kernel(launcher: Any, head_dim: int, group_size: int) -> None:
    """Lengths around the steps of a block, a tile and a split."""
    rng = np.random.default_rng(head_dim + group_size)
    ends = [(2, 0), (1, 15), (3, 62), (1, 127), (2, 127), (1, 192)]
    case = drawn(rng, ends, (1, group_size), head_dim).quantised()
    case.check(decode(launcher, case, 3))
    case.check(prefill(launcher, case))


@pytest.mark.parametrize("head_dim", OF_BLOCKS)
def test_mean_of_integers_is_exact(launcher: Any, head_dim: int) -> None:
    """q = 0 weighs all keys alike; over a power of two of them every sum is exact, and every quant
    and every scale must be the one of its place: scales are powers of two of either sign."""
    rng = np.random.default_rng(head_dim)
    lengths = [1, 2, 32, 64, 128, 256]
    case = drawn(rng, [(1, n - 1) for n in lengths], (2, 3), head_dim)
    case.q[:] = 0
    quants = rng.integers(-127, 128, case.v.shape).astype(np.int8)
    powers = rng.integers(-2, 3, (*case.v.shape[:3], head_dim // 32))
    scales = (2.0**powers * rng.choice([-1, 1], powers.shape)).astype(np.float16)
    case = case.of_blocks((quants, np.abs(scales)), (quants, scales))
    for out in (decode(launcher, case, 4), prefill(launcher, case)):
        np.testing.assert_array_equal(out, case.expected())


def test_scores_of_integers_are_exact(launcher: Any) -> None:
    """A key far above the others: its value comes back bit for bit, wherever it stands."""
    rng = np.random.default_rng(0)
    case = drawn(rng, [(1, 199)] * 8, (1, 1), 64)
    case.q[:] = 100
    quants = np.full(case.k.shape, -50, np.int8)
    at = rng.integers(0, 200, 8)
    quants[np.arange(8), 0, at] = 50
    scales = np.ones((*quants.shape[:3], 2), np.float16)
    v = rng.integers(-127, 128, quants.shape).astype(np.int8)
    case = case.of_blocks((quants, scales), (v, scales))
    for out in (decode(launcher, case, 4), prefill(launcher, case)):
        np.testing.assert_array_equal(out[:, 0], v[case.seq, 0, at[case.seq]])


def test_beyond_2_to_31_elements(launcher: Any) -> None:
    if not hasattr(launcher, "emulator"):
        pytest.skip("a card's memory is not sparse")
    rng, head_dim, max_seq_len, n = np.random.default_rng(5), 64, 2**24 + 100, 50
    near = drawn(rng, [(1, n - 1)], (1, 2), head_dim).quantised()
    blocks = []
    for part in near.blocks:
        far = np.zeros((2, 1, max_seq_len, part.shape[3]), part.dtype)
        far[1, 0, max_seq_len - n :] = part[0, 0, :n]
        blocks.append(far)
    assert blocks[0].size > 2**31
    seq, pos = np.array([1], np.int32), np.array([max_seq_len - 1], np.int32)
    rows = {"seq": seq, "pos": pos, "window": n}
    case = Q8Case(near.q, near.k, near.v, scale=near.scale, blocks=tuple(blocks), **rows)
    q, *caches = case.uploaded(launcher, sparse=True)
    out = launcher.poisoned(case.q.shape)
    attention_prefill_q8(q, *caches, out, **case.options, stream=launcher)
    near.check(launcher.read(out))
    out, arrived = launcher.poisoned(case.q.shape), launcher.upload(np.zeros((1, 2), np.int32))
    partial = launcher.poisoned(partial_shape(1, 2, head_dim, 2))
    attention_decode_q8(q, *caches, partial, arrived, out, **case.options, stream=launcher)
    near.check(launcher.read(out))


def test_wrong_arguments_are_named(launcher: Any) -> None:
    case = drawn(np.random.default_rng(0), [(2, 1)], (1, 1), 64).quantised()
    k_quants, k_scales, *v = case.blocks
    case.blocks = (k_quants, k_scales.astype(np.float32), *v)
    with pytest.raises(KernelContractError, match=r"k_scales: expected float16\[1, 1, 6, 2\]"):
        prefill(launcher, case)
    case.blocks = (k_quants.view(np.uint8), k_scales, *v)
    with pytest.raises(KernelContractError, match=r"k_quants: expected int8\["):
        decode(launcher, case, 1)
