"""Rotary position embedding (arXiv 2104.09864), by complex numbers.

Pair d of a head is one complex number that turns by the table's angle at the token's position.
layout "interleaved": pair d is elements (2d, 2d + 1); "half": elements (d, d + rope_dim / 2).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def rope(
    x: NDArray[Any], pos: NDArray[Any], cos: NDArray[Any], sin: NDArray[Any], layout: str
) -> NDArray[np.float64]:
    """x [n_tokens, n_heads, head_dim], cos and sin [max_seq_len, rope_dim / 2] -> float64, as x.

    Elements from rope_dim on stay as they are.
    """
    n_pairs = cos.shape[1]
    x = x.astype(np.float64)
    if layout == "interleaved":
        first, second = slice(0, 2 * n_pairs, 2), slice(1, 2 * n_pairs, 2)
    else:
        first, second = slice(0, n_pairs), slice(n_pairs, 2 * n_pairs)
    turn = cos[pos].astype(np.float64) + 1j * sin[pos].astype(np.float64)
    turned = (x[..., first] + 1j * x[..., second]) * turn[:, None, :]
    y = x.copy()
    y[..., first], y[..., second] = turned.real, turned.imag
    return y
