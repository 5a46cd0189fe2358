"""Bias: y[t, c] = x[t, c] + bias[c]."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def add_bias(bias: NDArray[Any], x: NDArray[Any]) -> NDArray[np.float64]:
    """bias [n_cols], x [n_tokens, n_cols] -> float64[n_tokens, n_cols]"""
    return x.astype(np.float64) + bias.astype(np.float64)
