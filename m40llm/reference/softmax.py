"""Softmax over the last axis: exp(x - max) / sum."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def softmax(x: NDArray[Any]) -> NDArray[np.float64]:
    """x [..., n] -> float64[..., n]; at least one entry of each row is finite"""
    x = x.astype(np.float64)
    weights = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))
