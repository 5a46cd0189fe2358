"""SwiGLU's gate (arXiv 2002.05202): y = silu(gate) * up with silu(g) = g / (1 + exp(-g))."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def swiglu(gate: NDArray[Any], up: NDArray[Any]) -> NDArray[np.float64]:
    """gate, up [n_tokens, n_ff] -> float64[n_tokens, n_ff]"""
    gate = gate.astype(np.float64)
    return np.asarray(gate / (1.0 + np.exp(-gate)) * up)


def geglu(gate: NDArray[Any], up: NDArray[Any]) -> NDArray[np.float64]:
    """gate / 2 * (1 + tanh(sqrt(2 / pi) * (gate + 0.044715 gate^3))) * up (arXiv 1606.08415)"""
    gate = gate.astype(np.float64)
    inner = np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)
    # 1 + tanh(u) = 2 / (1 + exp(-2u)): the left side loses all digits where u is far below 0
    with np.errstate(over="ignore"):
        return np.asarray(gate / (1.0 + np.exp(-2.0 * inner)) * up)
