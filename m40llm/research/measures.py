"""Numbers that say what logits mean. In FP64: float64 of float32."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m40llm.errors import RequestError

Doubles = NDArray[np.float64]


def logprobs(logits: NDArray[Any]) -> Doubles:
    """log softmax over the last axis   [..., vocab_size]"""
    wide = np.asarray(logits, np.float64)
    shifted = wide - wide.max(axis=-1, keepdims=True)
    result: Doubles = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def nll(logits: NDArray[Any], ids: Sequence[int]) -> Doubles:
    """[n - 1]: -log p(ids[i + 1] | ids[: i + 1]), nats   logits [n, vocab_size]"""
    n = len(ids)
    if logits.shape[0] != n:
        raise RequestError(f"nll: expected logits of {n} positions, got {logits.shape[0]}")
    result: Doubles = -logprobs(logits)[np.arange(n - 1), np.asarray(ids[1:], np.int64)]
    return result


def entropy(logits: NDArray[Any]) -> Doubles:
    """[...]: of the next token's distribution, nats   logits [..., vocab_size]"""
    log_p = logprobs(logits)
    told = np.where(np.isneginf(log_p), 0.0, log_p)  # what never comes adds nothing
    result: Doubles = -(np.exp(log_p) * told).sum(axis=-1)
    return result
