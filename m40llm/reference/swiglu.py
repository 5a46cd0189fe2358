"""SwiGLU's gate (arXiv 2002.05202): y = silu(gate) * up with silu(g) = g / (1 + exp(-g))."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def swiglu(gate: NDArray[Any], up: NDArray[Any]) -> NDArray[np.float64]:
    """gate, up [n_tokens, n_ff] -> float64[n_tokens, n_ff]"""
    gate = gate.astype(np.float64)
    return np.asarray(gate / (1.0 + np.exp(-gate)) * up)
