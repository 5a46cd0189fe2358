"""rope, and the append to a KV cache in Q8_0: its blocks, bit for bit."""

from typing import Any

import numpy as np

from m40llm import reference
from m40llm.fuzz.contents import blocks_of_any_size, integers
from m40llm.fuzz.definition import target
from m40llm.fuzz.strategies import choices, seeds, sizes
from m40llm.fuzz.targets.rope import (
    LAYOUTS,
    MAX_SEQ_LEN,
    N_SEQS,
    ROTATED,
    pairs,
    rows_to_append,
    turned,
)
from m40llm.kernels import rope_append_q8 as kernels


@target(
    ops=kernels,
    n_tokens=sizes(2, 6),
    n_kv_heads=sizes(2, 5),
    head_dim=choices([32, 64, 96, 128, 256]),
    layout=LAYOUTS,
    rotated=ROTATED,
    seed=seeds(),
)
def rope_append_q8(
    card: Any, ops: Any, n_tokens: int, n_kv_heads: int, head_dim: int, layout: str, rotated: float,
    seed: int,
) -> None:  # fmt: skip
    """Whole numbers for cosine and sine: every product is exact, each index has its own."""
    rng, n_pairs = np.random.default_rng(seed), pairs(head_dim, rotated)
    seq, pos, q, k = rows_to_append(rng, n_tokens, n_kv_heads, head_dim)
    v = blocks_of_any_size(rng, n_tokens, n_kv_heads, head_dim)
    k[0] *= 2**20  # beyond what a scale can hold, here and there
    v[0, 0, 0], v[0, -1, -1] = np.inf, -1e30
    cos, sin = (integers(rng, MAX_SEQ_LEN, n_pairs, most=8) for _ in "cs")
    quants = np.full((N_SEQS, n_kv_heads, MAX_SEQ_LEN, head_dim), 99, np.int8)
    scales = np.full((*quants.shape[:3], head_dim // 32), 6e4, np.float16)
    q_on, *caches = (card.upload(a, read_only=False) for a in (q, quants, scales, quants, scales))
    rows = map(card.upload, (seq, pos, cos, sin))
    ops.rope_append_q8(q_on, card.upload(k), card.upload(v), *caches, *rows, layout, stream=card)
    turned_q, turned_k = (turned(x, pos, cos, sin, layout) for x in (q, k))
    np.testing.assert_array_equal(card.read(q_on), turned_q)
    of_k, of_v = (reference.append_q8(x, quants, scales, seq, pos) for x in (turned_k, v))
    for got, expected in zip(map(card.read, caches), (*of_k, *of_v), strict=True):
        np.testing.assert_array_equal(got, expected)
