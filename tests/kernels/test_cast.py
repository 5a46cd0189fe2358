"""cast against NumPy's own rounding, bit for bit."""

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from m40llm.errors import KernelContractError
from m40llm.kernels.cast import cast
from m40llm.reference import cast as reference

SEEDS = st.integers(0, 2**32 - 1)


def check(launcher: Any, x: np.ndarray, seed: int) -> None:
    expected = reference(x)
    out = launcher.poisoned(x.shape, expected.dtype)
    cast(launcher.upload(x, read_only=True), out, stream=launcher.reordered(seed))
    got = launcher.read(out)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
    kind = np.uint16 if expected.dtype == np.float16 else np.uint32
    finite = ~np.isnan(expected)
    np.testing.assert_array_equal(got.view(kind)[finite], expected.view(kind)[finite])


@given(n=st.integers(1, 3000), seed=SEEDS)
@example(n=1, seed=0)
@example(n=4, seed=1)
@example(n=1023, seed=2)
@example(n=1025, seed=3)
def test_any_bits_to_half(launcher: Any, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2**32, n, np.uint32)
    near = rng.integers(0, 2**16, n, np.uint16).view(np.float16).astype(np.float32)
    ties = near.view(np.uint32) + rng.integers(-1, 2, n).astype(np.uint32) + np.uint32(0x1000)
    x = np.where(rng.random(n) < 0.5, bits, ties).astype(np.uint32).view(np.float32)
    check(launcher, x, seed)


def test_every_half_to_float(launcher: Any) -> None:
    check(launcher, np.arange(2**16, dtype=np.uint16).view(np.float16), 0)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_tails_to_float(launcher: Any, n: int) -> None:
    check(launcher, np.arange(n).astype(np.float16), n)


def test_special_values(launcher: Any) -> None:
    x = [0.0, -0.0, 65504, 65519.99, 65520, -65520, 2**-24, 2**-25, 2**-25 * 1.01, np.inf, np.nan]
    check(launcher, np.array(x, np.float32), 0)


def test_contract(launcher: Any) -> None:
    x = np.zeros(4, np.float32)
    with pytest.raises(KernelContractError, match=r"out: expected float16\[4\], got float32\[4\]"):
        cast(x, np.zeros(4, np.float32), stream=launcher)
    cast(x[:0], np.zeros(0, np.float16), stream=launcher)
