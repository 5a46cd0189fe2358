"""How far a result may be from the FP64 reference: the derived bounds of tests/kernels, as numbers.

u = 2^-24 is half a unit in the last place of FP32, relative; `gamma(n)` bounds a sum of n products.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from m40llm.testing.noisy_ops import UNIT_ROUNDOFF, gamma

U = UNIT_ROUNDOFF
HALF_ULP = 2.0**-11  # of FP16, relative
HALF_TINY = 2.0**-25  # of FP16's subnormals, absolute
TINY = 2.0**-126  # FP32's smallest normal

__all__ = ["HALF_TINY", "HALF_ULP", "TINY", "U", "equal", "gamma", "share_of"]


def share_of(out: NDArray[Any], expected: NDArray[Any], bound: Any) -> float:
    """The largest error as a share of its bound, 1 at most if all is well; inf for NaN."""
    error = np.abs(out.astype(np.float64) - expected)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(error == 0, 0.0, error / bound)
    return float(np.where(np.isnan(share), np.inf, share).max(initial=0.0))


def equal(out: NDArray[Any], expected: NDArray[Any]) -> float:
    """0 where all elements are equal, else inf."""
    return 0.0 if np.array_equal(out, expected) else float("inf")


def block_sums(n: int, n_threads: int) -> int:
    """Roundings that a term of a block's sum meets: in its thread, its warp and its block."""
    return 1 + -(-n // n_threads) + 5 + n_threads // 32


def softmax_bound(x: NDArray[Any], expected: NDArray[Any], n_threads: int) -> NDArray[Any]:
    """x - max rounds once, which exp makes absolute; exp within 2 ulp, twice; sum; quotient."""
    shifted = x.max(axis=1, keepdims=True).astype(np.float64) - x
    in_sum = (expected * shifted).sum(axis=1, keepdims=True)
    n_sums = block_sums(x.shape[1], n_threads) - 1
    return np.asarray(1.01 * (shifted + in_sum + 10 + n_sums) * U * expected + TINY)


def gate_bound(gate: NDArray[Any], up: NDArray[Any], expected: NDArray[Any], *, gelu: bool) -> Any:
    """exp within 2 ulp, sum, quotient, product; GELU's exponent is 5 roundings from exact."""
    g = gate.astype(np.float64)
    exponent = 9.6 * np.abs(g) * (1 + 0.045 * g * g) if gelu else 0.0
    return (7 + exponent) * U * np.abs(expected) + 2.0**-121 * np.abs(up) + TINY


def attention_bound(
    q: NDArray[Any], k: NDArray[Any], magnitude: NDArray[Any], n_keys: int, scale: float
) -> NDArray[Any]:
    """Of one row's heads of one K/V head: q [n_heads, head_dim], k [n_keys, head_dim].

    `magnitude` is the same attention over |v|. A score errs by gamma of the sum of |q||k|; the
    exponents' differences add up to twice that; 7 roundings a key. tests/kernels/attention_cases.py
    has the derivation.
    """
    score = np.abs(k.astype(np.float64)) @ np.abs(q.astype(np.float64)).T
    largest = abs(scale) * score.max(axis=0)[:, None]
    exponent = (gamma(q.shape[1] + 8) + 2 * U) * largest
    relative = np.expm1(exponent) + gamma(7 * n_keys + 64)
    return np.asarray(2 * relative / (1 - relative) * magnitude)
