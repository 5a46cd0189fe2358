"""Append to the KV cache: cache[seq[t], head, pos[t]] = k[t, head], rounded to the cache's type."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def append(
    k: NDArray[Any], cache: NDArray[Any], seq: NDArray[Any], pos: NDArray[Any]
) -> NDArray[Any]:
    """k [n_tokens, n_kv_heads, head_dim], cache [n_seqs, n_kv_heads, max_seq_len, head_dim]

    Returns the cache after the append, in its own type; what is beyond that is its largest number.
    Rows at position -1 are idle.
    """
    cache, largest = cache.copy(), np.finfo(cache.dtype).max
    for t in np.flatnonzero(pos >= 0):
        cache[seq[t], :, pos[t]] = np.clip(k[t], -largest, largest).astype(cache.dtype)
    return cache
