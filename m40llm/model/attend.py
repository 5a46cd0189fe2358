"""Attention on the host, in FP64, whose scores and pattern can be seen and changed on the way.

The devices' attention keeps neither: it is slower by orders of magnitude, and for who asks.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from m40llm.model.kv_cache import KVCache
from m40llm.reference import softmax

Floats = NDArray[np.float32]
Change = Callable[[str, Floats], None]  # of "scores" or "pattern", in place


def attend(
    q: Floats,
    kv: KVCache,
    layer: int,
    seq: NDArray[np.int32],
    pos: NDArray[np.int32],
    *,
    scale: float,
    window: int,
    softcap: float,
    change: Change,
) -> Floats:
    """float32[t, n_heads, head_dim], as Ops.attention has it   q [t, n_heads, head_dim], turned

    Scores and pattern are float32[t, n_heads, max(pos) + 1] (q's type); the rows' keys are cached.
    """
    n_tokens, n_heads, _ = q.shape
    n_keys = int(pos.max()) + 1
    scores = np.full((n_tokens, n_heads, n_keys), -np.inf, q.dtype)
    values = {}
    for s in np.unique(seq):
        rows = np.flatnonzero(seq == s)
        n = int(pos[rows].max()) + 1
        k, v = (np.repeat(c, n_heads // c.shape[0], axis=0) for c in kv.prefix(layer, s, n))
        values[s] = rows, n, v  # [n_heads, n, head_dim]
        scores[rows, :, :n] = scale * np.einsum("thd,hpd->thp", q[rows].astype(np.float64), k)
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    at = np.arange(n_keys)
    is_seen = at <= pos[:, None]
    if window:
        is_seen &= at > pos[:, None] - window
    is_masked = ~np.repeat(is_seen[:, None], n_heads, axis=1)
    scores[is_masked] = -np.inf
    change("scores", scores)
    scores[is_masked] = -np.inf  # there is nothing to see, whoever changed it
    pattern = softmax(scores).astype(q.dtype)
    change("pattern", pattern)
    pattern[is_masked] = 0
    out = np.empty_like(q)
    for rows, n, v in values.values():
        out[rows] = np.einsum("thp,hpd->thd", pattern[rows, :, :n].astype(np.float64), v)
    return out
