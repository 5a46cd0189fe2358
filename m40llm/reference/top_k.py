"""The k largest of each row, largest first, equal ones by id; NaN comes after -inf."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def top_k(x: NDArray[Any], k: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """x [n_rows, n], k <= n -> (values [n_rows, k], ids int64[n_rows, k])"""
    ids = np.argsort(-x, axis=-1, kind="stable")[:, :k]  # argsort puts NaN last
    return np.take_along_axis(x, ids, axis=-1), ids
