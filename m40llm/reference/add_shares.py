"""What a token's experts made, added: x[t] + the sum of shares[i] * y[i] over the slots i of t."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def add_shares(x: NDArray[Any], shares: NDArray[Any], y: NDArray[Any]) -> NDArray[np.float64]:
    """x [n_tokens, n_cols], shares [n_slots], y [n_slots, n_cols] -> float64[n_tokens, n_cols]"""
    added = shares.astype(np.float64)[:, None] * y
    return np.asarray(x + added.reshape(len(x), -1, x.shape[1]).sum(axis=1))
