"""RMSNorm (arXiv 1910.07467): y[t, c] = weight[c] * x[t, c] / sqrt(mean_c(x[t]^2) + eps)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def rms_norm(x: NDArray[Any], weight: NDArray[Any], eps: float) -> NDArray[np.float64]:
    """x [n_tokens, n_embd], weight [n_embd] -> float64[n_tokens, n_embd]"""
    x = x.astype(np.float64)
    mean_square = (x * x).mean(axis=-1, keepdims=True)
    return np.asarray(weight * x / np.sqrt(mean_square + eps))
