"""Attention on the CPU, both ways of it, against the reference; and laws that need none."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from m40llm import reference
from m40llm.device.cpu.attention import attention
from m40llm.device.cpu.vectors import MAX_VECTORS
from m40llm.testing.noisy_ops import gamma

POISON = 6e4  # what the cache holds beyond its length: any leak shows


def drawn_cache(rng: np.random.Generator, shape: tuple[int, ...], seq_lens: list[int]) -> tuple:
    """K and V float32[n_seqs, n_kv_heads, max_seq_len, head_dim], poisoned beyond each length."""
    caches = []
    for _ in "kv":
        cache = np.full(shape, POISON, np.float32)
        for s, n in enumerate(seq_lens):
            cache[s, :, :n] = rng.standard_normal((shape[1], n, shape[3]))
        caches.append(cache)
    return tuple(caches)


@given(
    runs=st.lists(st.tuples(st.integers(1, 37), st.integers(0, 20)), min_size=1, max_size=3),
    n_kv_heads=st.integers(1, 3),
    group_size=st.integers(1, 4),
    head_dim=st.sampled_from([2, 16, 64, 80]),
    window=st.sampled_from([0, 0, 1, 7, 16]),
    softcap=st.sampled_from([0.0, 0.0, 0.5, 3.0, 50.0]),
    spread=st.sampled_from([1.0, 10.0]),
    seed=st.integers(0, 2**32 - 1),
)
@example([(16, 0)], 1, 1, 64, 0, 0.0, 1.0, 0)
@example([(17, 0), (1, 5)], 2, 3, 16, 7, 0.5, 1.0, 1)
@example([(MAX_VECTORS, 0)], 1, 2, 2, 1, 0.5, 1.0, 2)
def test_matches_the_reference(
    runs: list[tuple[int, int]],
    n_kv_heads: int,
    group_size: int,
    head_dim: int,
    window: int,
    softcap: float,
    spread: float,
    seed: int,
) -> None:
    """Ragged runs, each a sequence with `n_before` tokens already cached."""
    rng = np.random.default_rng(seed)
    n_tokens = sum(n for n, _ in runs)
    seq = np.concatenate([np.full(n, s, np.int32) for s, (n, _) in enumerate(runs)])
    pos = np.concatenate([np.arange(b, b + n, dtype=np.int32) for n, b in runs])
    shape = (len(runs), n_kv_heads, 64, head_dim)
    k, v = drawn_cache(rng, shape, [n + b for n, b in runs])
    q = rng.normal(0, spread, (n_tokens, n_kv_heads * group_size, head_dim)).astype(np.float32)
    out, scale = np.full(q.shape, np.nan, np.float32), 1 / np.sqrt(head_dim)
    attention(q, k, v, seq, pos, scale, out, window=window, softcap=softcap)
    expected = reference.attention(q, k, v, seq, pos, scale, window, softcap)
    k_max, v_max = np.abs(k[k < POISON]).max(), np.abs(v[v < POISON]).max()
    n_roundings = head_dim + 4 + (9 if softcap else 0)  # those of softcap_bound
    score_error = gamma(n_roundings) * scale * np.abs(q).sum(axis=-1).max() * k_max
    bound = (4 * score_error + gamma(2 * 64 + 16)) * v_max
    assert np.abs(out - expected).max() <= bound


@pytest.mark.parametrize("n_tokens", [1, 5, 33])
def test_first_token_sees_only_itself(n_tokens: int) -> None:
    rng = np.random.default_rng(0)
    k, v = drawn_cache(rng, (1, 1, 64, 16), [n_tokens])
    q = rng.standard_normal((n_tokens, 1, 16)).astype(np.float32)
    out = np.full(q.shape, np.nan, np.float32)
    attention(q, k, v, np.zeros(n_tokens, np.int32), np.arange(n_tokens, dtype=np.int32), 1.0, out)
    np.testing.assert_array_equal(out[0, 0], v[0, 0, 0])
