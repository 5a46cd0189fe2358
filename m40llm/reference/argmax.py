"""Argmax of rows: the smallest id of the largest entry; NaN counts as -inf."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def argmax(x: NDArray[Any]) -> NDArray[np.int64]:
    """x [n_rows, n] -> int64[n_rows]"""
    return np.asarray(np.where(np.isnan(x), -np.inf, x).argmax(axis=-1))
