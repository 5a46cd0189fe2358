"""What arrays hold, from a seed or a generator: the same numbers in every process."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Rng = np.random.Generator


def generator(seed: "int | Rng") -> Rng:
    """A generator of its own, or the one given."""
    return seed if isinstance(seed, np.random.Generator) else np.random.default_rng(seed)


def integers(seed: "int | Rng", *shape: int, most: int = 4) -> NDArray[np.float32]:
    """float32[shape] of whole numbers from -most to most.

    Every FP32 sum of their products is exact as long as it stays below 2^24, in any order: compare
    with ==, and no dropped, doubled or misplaced term can hide in a tolerance.
    """
    return generator(seed).integers(-most, most + 1, shape).astype(np.float32)


def normals(seed: "int | Rng", *shape: int, spread: float = 1.0) -> NDArray[np.float32]:
    """float32[shape] of normal numbers."""
    return generator(seed).normal(0, spread, shape).astype(np.float32)


def floats(seed: "int | Rng", *shape: int) -> NDArray[np.float32]:
    """float32[shape] of any bits at all: subnormals, infinities and NaN too."""
    return generator(seed).integers(0, 2**32, shape, np.uint32).view(np.float32)


def blocks_of_any_size(seed: "int | Rng", *shape: int) -> NDArray[np.float32]:
    """float32[shape] of normal numbers, each 32 of them between 2^-140 and 2^20 in size: zeros
    among them, and halves beside a 127, which are ties where that becomes 127 steps of 1.
    """
    rng = generator(seed)
    x = rng.standard_normal(shape)
    blocks = x.reshape(-1, 32)
    blocks *= 2.0 ** rng.integers(-140, 20, (len(blocks), 1))
    blocks[rng.random(len(blocks)) < 0.1] = 0
    ties = rng.random(len(blocks)) < 0.3
    blocks[ties] = rng.integers(-253, 254, (int(ties.sum()), 32)) / 2
    blocks[ties, 0] = 127
    return x.astype(np.float32)


def rough_logits(seed: "int | Rng", n_rows: int, n: int, spread: float) -> NDArray[np.float32]:
    """float32[n_rows, n] of whole numbers, so that many are equal, with zeros of both signs,
    infinities and NaN. spread 0: all equal; 1: many ties; 30: few.
    """
    rng = generator(seed)
    x = np.round(rng.normal(0, 1, (n_rows, n)) * spread).astype(np.float32)
    odd = np.array([np.nan, -np.inf, 0.0, -0.0, 1e38, -1e-45, np.inf], np.float32)
    n_odd = rng.integers(3, 8)  # without the infinity at times, without the large one at others
    return np.where(rng.random(x.shape) < 0.2, rng.choice(odd[:n_odd], x.shape), x)


def assert_same_bits(got: NDArray[Any], expected: NDArray[Any]) -> None:
    """Equal bit for bit, zeros' signs too; NaN for NaN, whatever its payload."""
    np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
    expected = expected.astype(got.dtype)
    bits = np.dtype(f"u{got.itemsize}")
    sound = ~np.isnan(expected)
    np.testing.assert_array_equal(got[sound].view(bits), expected[sound].view(bits))
