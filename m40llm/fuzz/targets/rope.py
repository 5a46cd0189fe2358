"""rope, and its fusion with the append to the KV cache."""

from typing import Any

import numpy as np

from m40llm import reference
from m40llm.fuzz.attention import IDLE_SHARE, POISON
from m40llm.fuzz.bounds import assert_within, rope_bound
from m40llm.fuzz.contents import integers, normals
from m40llm.fuzz.definition import target
from m40llm.fuzz.strategies import choices, seeds, sizes
from m40llm.kernels import rope as kernels

LAYOUTS = choices(["interleaved", "half"])
HEAD_DIMS = choices([2, 6, 32, 64, 80, 96, 128, 256])
ROTATED = choices([1.0, 0.5, 0.25])  # the share of a head that turns
N_POS, N_SEQS, MAX_SEQ_LEN = 50, 3, 11


def pairs(head_dim: int, rotated: float) -> int:
    """How many pairs turn, one at least."""
    return max(1, int(head_dim * rotated) // 2)


@target(
    ops=kernels,
    n_tokens=sizes(2, 4),
    n_heads=sizes(4, 9),
    head_dim=HEAD_DIMS,
    layout=LAYOUTS,
    rotated=ROTATED,
    seed=seeds(),
)
def rope(
    card: Any, ops: Any, n_tokens: int, n_heads: int, head_dim: int, layout: str, rotated: float,
    seed: int,
) -> None:  # fmt: skip
    rng, n_pairs = np.random.default_rng(seed), pairs(head_dim, rotated)
    x = normals(rng, n_tokens, n_heads, head_dim, spread=3)
    pos = rng.integers(0, N_POS, n_tokens).astype(np.int32)
    angles = np.outer(np.arange(N_POS), 10000.0 ** (-np.arange(n_pairs) / n_pairs))
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    x_on = card.upload(x, read_only=False)
    ops.rope(x_on, *map(card.upload, (pos, cos, sin)), layout, stream=card)
    got = card.read(x_on)
    assert_within(got, reference.rope(x, pos, cos, sin, layout), rope_bound(x))
    np.testing.assert_array_equal(got[..., 2 * n_pairs :], x[..., 2 * n_pairs :])


def rows_to_append(rng: Any, n_tokens: int, n_kv_heads: int, head_dim: int) -> tuple[Any, ...]:
    """(seq, pos, q, k): whole numbers, at places that differ, but for idle rows."""
    places = rng.choice(N_SEQS * MAX_SEQ_LEN, n_tokens, replace=False)
    seq, pos = (a.astype(np.int32) for a in divmod(places, MAX_SEQ_LEN))
    pos[rng.random(n_tokens) < IDLE_SHARE] = -1
    q = integers(rng, n_tokens, 2 * n_kv_heads, head_dim, most=8)
    return seq, pos, q, integers(rng, n_tokens, n_kv_heads, head_dim, most=8)


def turned(x: Any, pos: Any, cos: Any, sin: Any, layout: str) -> Any:
    """What becomes of q and k; of idle rows nothing."""
    return np.where((pos < 0)[:, None, None], x, reference.rope(x, pos, cos, sin, layout))


@target(
    ops=kernels,
    n_tokens=sizes(2, 6),
    n_kv_heads=sizes(2, 5),
    head_dim=HEAD_DIMS,
    layout=LAYOUTS,
    rotated=ROTATED,
    seed=seeds(),
)
def rope_append(
    card: Any, ops: Any, n_tokens: int, n_kv_heads: int, head_dim: int, layout: str, rotated: float,
    seed: int,
) -> None:  # fmt: skip
    """Whole numbers for cosine and sine: every product is exact, each index has its own."""
    rng, n_pairs = np.random.default_rng(seed), pairs(head_dim, rotated)
    seq, pos, q, k = rows_to_append(rng, n_tokens, n_kv_heads, head_dim)
    v = integers(rng, n_tokens, n_kv_heads, head_dim, most=8)
    v *= np.float32(1 + 2**-11)  # a tie of FP16
    k[0] *= 2**13  # beyond FP16 here and there
    v[0] *= 2**13
    cos, sin = (integers(rng, MAX_SEQ_LEN, n_pairs, most=8) for _ in "cs")
    cache = np.full((N_SEQS, n_kv_heads, MAX_SEQ_LEN, head_dim), POISON, np.float16)
    q_on, k_cache, v_cache = (card.upload(a, read_only=False) for a in (q, cache, cache))
    rows = map(card.upload, (seq, pos, cos, sin))
    ops.rope_append(
        q_on, card.upload(k), card.upload(v), k_cache, v_cache, *rows, layout, stream=card
    )
    turned_q, turned_k = (turned(x, pos, cos, sin, layout) for x in (q, k))
    np.testing.assert_array_equal(card.read(q_on), turned_q)
    expected_k = reference.append(turned_k, cache, seq, pos)
    np.testing.assert_array_equal(card.read(k_cache), expected_k)
    np.testing.assert_array_equal(card.read(v_cache), reference.append(v, cache, seq, pos))
