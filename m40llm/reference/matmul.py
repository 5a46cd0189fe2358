"""Linear layer: y[t, r] = sum_c W[r, c] * x[t, c] + bias[r], W dequantised."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def matmul(
    w: NDArray[Any], x: NDArray[Any], bias: NDArray[Any] | None = None
) -> NDArray[np.float64]:
    """w [n_rows, n_cols], x [n_tokens, n_cols] -> float64[n_tokens, n_rows]"""
    y = x.astype(np.float64) @ w.astype(np.float64).T
    return y if bias is None else y + bias
