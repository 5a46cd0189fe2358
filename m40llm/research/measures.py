"""Numbers that say what logits mean. In FP64: float64 of float32."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m40llm.errors import RequestError

Doubles = NDArray[np.float64]


def logprobs(logits: NDArray[Any]) -> Doubles:
    """log softmax over the last axis   [..., vocab_size]"""
    wide = _checked(logits)
    shifted = wide - wide.max(axis=-1, keepdims=True)
    result: Doubles = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def nll(logits: NDArray[Any], ids: Sequence[int]) -> Doubles:
    """[n - 1]: -log p(ids[i + 1] | ids[: i + 1]), nats   logits [n, vocab_size]"""
    n, log_p, told = len(ids), logprobs(logits), np.asarray(ids)
    if log_p.ndim != 2:
        raise RequestError(f"nll: expected logits of [n, vocab_size], got {list(log_p.shape)}")
    if len(log_p) != n:
        raise RequestError(f"nll: expected logits of {n} positions, got {len(log_p)}")
    n_vocab = log_p.shape[1]
    if told.dtype.kind not in "iu" or told.min() < 0 or told.max() >= n_vocab:
        raise RequestError(f"nll: expected token ids, 0 to {n_vocab - 1}, got {ids!r}")
    result: Doubles = -log_p[np.arange(n - 1), told[1:]]
    return result


def entropy(logits: NDArray[Any]) -> Doubles:
    """[...]: of the next token's distribution, nats   logits [..., vocab_size]"""
    log_p = logprobs(logits)
    told = np.where(np.isneginf(log_p), 0.0, log_p)  # what never comes adds nothing
    result: Doubles = -(np.exp(log_p) * told).sum(axis=-1)
    return result


def _checked(logits: Any) -> Doubles:
    wide = np.asarray(logits)
    if wide.dtype.kind not in "iuf" or not wide.ndim or not wide.size:
        raise RequestError(f"logits: expected numbers of [..., vocab_size], got {logits!r}")
    return wide.astype(np.float64)
