"""Linear layers of chosen experts: y[i, r] = sum_c W[ids[i]][r, c] * x[t, c], W dequantised."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from m40llm.reference.matmul import matmul


def matmul_experts(w: NDArray[Any], x: NDArray[Any], ids: NDArray[Any]) -> NDArray[np.float64]:
    """w [n_experts, n_rows, n_cols], x [n_x, n_cols], ids [n_slots] -> float64[n_slots, n_rows]

    Each row of x is that of n_slots / n_x neighbouring slots.
    """
    of_slots = np.repeat(x, ids.size // len(x), axis=0)
    rows = [matmul(w[expert], of_slots[i : i + 1]) for i, expert in enumerate(ids)]
    return np.concatenate(rows)
