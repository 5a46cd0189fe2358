"""Soft cap (arXiv 2408.00118): cap * tanh(x / cap), which stays within +-cap."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def softcap(x: NDArray[Any], cap: float) -> NDArray[np.float64]:
    """x [n_tokens, n_cols] -> float64[n_tokens, n_cols]"""
    return np.asarray(cap * np.tanh(x.astype(np.float64) / cap))
