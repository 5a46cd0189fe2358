"""The router's choice: a softmax over all experts, and of it the largest of each token."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from m40llm.reference.softmax import softmax
from m40llm.reference.top_k import top_k


def choose_experts(
    logits: NDArray[Any], n_used: int, *, scale: float = 1.0, is_normalised: bool = True
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """logits [n_tokens, n_experts] -> (ids, shares float64), [n_tokens, n_used] both; the largest
    first, of equal ones the lower id. Normalised, the shares of a token have the sum `scale`."""
    _, ids = top_k(logits, n_used)
    shares = np.take_along_axis(softmax(logits), ids, axis=1)
    if is_normalised:
        shares /= shares.sum(axis=1, keepdims=True)
    return ids, scale * shares
