"""Embedding: y[t] = table[token_ids[t]], the table dequantised."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def embedding(table: NDArray[Any], token_ids: NDArray[Any]) -> NDArray[np.float64]:
    """table [vocab_size, n_embd], token_ids int[n_tokens] -> float64[n_tokens, n_embd]"""
    return np.asarray(table[token_ids], np.float64)
