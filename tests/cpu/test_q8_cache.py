"""The cpu's cache in Q8_0: blocks as gguf.quants makes them, attention over what they stand for."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from m40llm import reference
from m40llm.device.cpu import q8_cache
from m40llm.device.cpu.vectors import MAX_VECTORS
from m40llm.device.ops import Q8Cache
from m40llm.fuzz.contents import blocks_of_any_size
from m40llm.testing.noisy_ops import gamma

SEEDS = st.integers(0, 2**32 - 1)
POISON = 6e4  # what the cache holds beyond its length: any leak shows


def poisoned(*shape: int) -> Q8Cache:
    """All of it 99 * POISON; shape [n_seqs, n_kv_heads, max_seq_len, head_dim]."""
    scales = np.full((*shape[:-1], shape[-1] // 32), POISON, np.float16)
    return Q8Cache(np.full(shape, 99, np.int8), scales)


@given(n_tokens=st.integers(1, 6), head_dim=st.sampled_from([32, 64, 96]), seed=SEEDS)
def test_append_is_the_references(n_tokens: int, head_dim: int, seed: int) -> None:
    """Blocks of any size, zeros and ties among them; the reference is gguf.quants' equal."""
    rng = np.random.default_rng(seed)
    x = blocks_of_any_size(rng, n_tokens, 2, head_dim)
    seq, pos = (a.astype(np.int32) for a in divmod(rng.permutation(33)[:n_tokens], 11))
    cache = poisoned(3, 2, 11, head_dim)
    expected = reference.append_q8(x, cache.quants, cache.scales, seq, pos)
    q8_cache.append(x, cache, seq, pos)
    np.testing.assert_array_equal(cache.quants, expected[0])
    np.testing.assert_array_equal(cache.scales.view(np.uint16), expected[1].view(np.uint16))


def test_what_a_scale_cannot_hold() -> None:
    """As on a card: finite values stay finite, NaN damages its block, so that it is seen."""
    x, cache = np.ones((1, 1, 96), np.float32), poisoned(1, 1, 1, 96)
    x[0, 0, 5], x[0, 0, 40], x[0, 0, 70] = -np.inf, np.nan, 1e30
    q8_cache.append(x, cache, np.zeros(1, np.int32), np.zeros(1, np.int32))
    values = reference.dequantise_q8(cache.quants, cache.scales)[0, 0, 0]
    assert (values[5], values[70]) == (-127 * 65504, 127 * 65504)
    assert np.isnan(values[32:64]).all()
    assert np.isfinite(values[:32]).all()


@given(
    runs=st.lists(st.tuples(st.integers(1, 37), st.integers(0, 20)), min_size=1, max_size=3),
    n_kv_heads=st.integers(1, 3),
    group_size=st.integers(1, 4),
    head_dim=st.sampled_from([32, 64, 96]),
    window=st.sampled_from([0, 0, 1, 7, 16]),
    seed=SEEDS,
)
@example(runs=[(16, 0)], n_kv_heads=1, group_size=1, head_dim=64, window=0, seed=0)
@example(runs=[(17, 0), (1, 5)], n_kv_heads=2, group_size=3, head_dim=32, window=7, seed=1)
@example(runs=[(MAX_VECTORS, 0)], n_kv_heads=1, group_size=2, head_dim=32, window=1, seed=2)
def test_attention_matches_the_reference(
    runs: list[tuple[int, int]], n_kv_heads: int, group_size: int, head_dim: int, window: int,
    seed: int,
) -> None:  # fmt: skip
    """Ragged runs, each a sequence with `n_before` tokens already cached."""
    rng = np.random.default_rng(seed)
    seq = np.concatenate([np.full(n, s, np.int32) for s, (n, _) in enumerate(runs)])
    pos = np.concatenate([np.arange(b, b + n, dtype=np.int32) for n, b in runs])
    k, v = (poisoned(len(runs), n_kv_heads, 64, head_dim) for _ in "kv")
    for s, (n, before) in enumerate(runs):
        for cache in (k, v):
            drawn = rng.standard_normal((n_kv_heads, n + before, head_dim))
            parts = reference.quantise_q8(drawn)
            cache.quants[s, :, : n + before], cache.scales[s, :, : n + before] = parts
    q = rng.standard_normal((len(seq), n_kv_heads * group_size, head_dim)).astype(np.float32)
    out, scale = np.full(q.shape, np.nan, np.float32), 1 / np.sqrt(head_dim)
    q8_cache.attention(q, k, v, seq, pos, scale, out, window=window)
    values = [reference.dequantise_q8(cache.quants, cache.scales) for cache in (k, v)]
    expected = reference.attention(q, *values, seq, pos, scale, window)
    k_max, v_max = (np.abs(a[np.abs(a) < POISON]).max() for a in values)
    # A block's sum is multiplied by its scale, a weight by its: one rounding more each.
    score_error = gamma(head_dim + 5) * scale * np.abs(q).sum(axis=-1).max() * k_max
    bound = (4 * score_error + gamma(2 * 64 + 17)) * v_max
    assert np.abs(out - expected).max() <= bound


@pytest.mark.parametrize("n_tokens", [1, 5, 33])
def test_first_token_sees_only_itself(n_tokens: int) -> None:
    rng = np.random.default_rng(0)
    k, v = (poisoned(1, 1, 64, 32) for _ in "kv")
    seq, pos = np.zeros(n_tokens, np.int32), np.arange(n_tokens, dtype=np.int32)
    for cache in (k, v):
        q8_cache.append(rng.standard_normal((n_tokens, 1, 32), np.float32), cache, seq, pos)
    q = rng.standard_normal((n_tokens, 1, 32), np.float32)
    out = np.full(q.shape, np.nan, np.float32)
    q8_cache.attention(q, k, v, seq, pos, 1.0, out)
    expected = reference.dequantise_q8(v.quants[0, 0, 0], v.scales[0, 0, 0])
    np.testing.assert_array_equal(out[0, 0], expected)
