"""Errors as shares of their bounds, so that a row says how close to wrong it was.

The bounds themselves are the fuzzer's, m40llm.fuzz.bounds.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

HALF_ULP = 2.0**-11  # of FP16, relative
HALF_TINY = 2.0**-25  # of FP16's subnormals, absolute


def share_of(out: NDArray[Any], expected: NDArray[Any], bound: Any) -> float:
    """The largest error as a share of its bound, 1 at most if all is well; inf for NaN."""
    error = np.abs(out.astype(np.float64) - expected)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(error == 0, 0.0, error / bound)
    return float(np.where(np.isnan(share), np.inf, share).max(initial=0.0))


def equal(out: NDArray[Any], expected: NDArray[Any]) -> float:
    """0 where all elements are equal, else inf."""
    return 0.0 if np.array_equal(out, expected) else float("inf")
