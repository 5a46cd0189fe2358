"""Multipliers: x * factor, and x + factor * y."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def scale(x: NDArray[Any], factor: float) -> NDArray[np.float64]:
    """x [n_tokens, n_cols] -> float64[n_tokens, n_cols]"""
    return np.asarray(x.astype(np.float64) * factor)


def add_scaled(x: NDArray[Any], y: NDArray[Any], factor: float) -> NDArray[np.float64]:
    """x, y [n_tokens, n_cols] -> float64[n_tokens, n_cols]"""
    return np.asarray(x.astype(np.float64) + factor * y.astype(np.float64))
