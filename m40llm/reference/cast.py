"""Cast between FP32 and FP16: to nearest, ties to even."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def cast(x: NDArray[Any]) -> NDArray[Any]:
    """float32[n] -> float16[n], float16[n] -> float32[n]"""
    with np.errstate(over="ignore", invalid="ignore"):
        return x.astype(np.float16 if x.dtype == np.float32 else np.float32)
