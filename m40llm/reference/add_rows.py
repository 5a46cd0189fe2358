"""Rows added where they belong: x[rows[i]] + shares[i] * y[i]."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def add_rows(
    x: NDArray[Any], rows: NDArray[Any], shares: NDArray[Any], y: NDArray[Any]
) -> NDArray[np.float64]:
    """x [n_tokens, n_cols], rows and shares [n], y [n, n_cols] -> float64[n_tokens, n_cols]"""
    result = x.astype(np.float64)
    np.add.at(result, rows, shares.astype(np.float64)[:, None] * y)
    return result
