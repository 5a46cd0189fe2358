"""Causal attention over the cache (arXiv 1706.03762), with grouped K and V heads, row by row.

out[t, h] = sum_p softmax_p(score[t, h, p]) * v[p]  over p <= pos[t] of sequence seq[t]
score     = scale * q[t, h] . k[p], or softcap * tanh(that / softcap)   (arXiv 2408.00118)
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from m40llm.reference.softmax import softmax


def attention(
    q: NDArray[Any],
    k_cache: NDArray[Any],
    v_cache: NDArray[Any],
    seq: NDArray[Any],
    pos: NDArray[Any],
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
) -> NDArray[np.float64]:
    """q [n_tokens, n_heads, head_dim]; caches [n_seqs, n_kv_heads, max_seq_len, head_dim].

    pos      -1 for an idle row, without keys: 0
    window   a row sees its last `window` positions only; 0 for all
    softcap  scores stay within +-softcap; 0 for no cap
    Returns float64[n_tokens, n_heads, head_dim].
    """
    n_tokens, n_heads, _ = q.shape
    group_size = n_heads // k_cache.shape[1]
    out = np.zeros(q.shape, np.float64)
    for t in range(n_tokens):
        last = int(pos[t])
        if last < 0:
            continue
        first = max(0, last + 1 - window) if window else 0
        for head in range(n_heads):
            k = k_cache[seq[t], head // group_size, first : last + 1].astype(np.float64)
            v = v_cache[seq[t], head // group_size, first : last + 1].astype(np.float64)
            score = scale * (k @ q[t, head].astype(np.float64))
            if softcap:
                score = softcap * np.tanh(score / softcap)
            out[t, head] = softmax(score) @ v
    return out
