"""Rows of weights of each kind, for tests of K-quants and the goldens they are compared with."""

from collections.abc import Callable

import numpy as np

N_ROWS, N_COLS = 4, 512
_Draw = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]

KINDS: dict[str, _Draw] = {
    "normal": lambda rng, shape: 0.02 * rng.standard_normal(shape),
    "heavy-tailed": lambda rng, shape: 0.02 * rng.standard_t(2, shape),
    "positive": lambda rng, shape: 0.5 + np.abs(rng.standard_normal(shape)),
    "negative": lambda rng, shape: -np.abs(rng.standard_normal(shape)),
    "sparse": lambda rng, shape: rng.standard_normal(shape) * (rng.random(shape) < 0.05),
    "constant": lambda rng, shape: np.broadcast_to(rng.standard_normal((shape[0], 1)), shape),
    "whole": lambda rng, shape: rng.integers(-3, 4, shape),
    "small": lambda rng, shape: 1e-5 * rng.standard_normal(shape),
}


def rows(kind: str) -> np.ndarray:
    """float32[N_ROWS, N_COLS], always the same."""
    rng = np.random.default_rng(list(KINDS).index(kind))
    return np.ascontiguousarray(KINDS[kind](rng, (N_ROWS, N_COLS)), np.float32)


def errors(again: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Sum of squares of each block of 256: float64[n_blocks]."""
    off = again.astype(np.float64) - weights
    return (off**2).reshape(-1, 256).sum(axis=1)
