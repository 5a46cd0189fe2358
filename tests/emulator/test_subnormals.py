"""Products with subnormal quants: the bits of NumPy's float32 product, without such a product."""

from typing import Any

import numpy as np
import pytest
from numba import cuda, uint32

from m40llm.device.emulator import Emulator
from m40llm.device.emulator.subnormals import without_subnormals
from m40llm.kernels.bits import uint_as_float


def multiply(words: Any, x: Any, out: Any) -> None:
    i = cuda.grid(1)
    if i < x.size:
        word = words[i]
        out[0, i] = uint_as_float(uint32(word & uint32(0xF00))) * x[i]
        out[1, i] = x[i] * uint_as_float(uint32(word & uint32(0xFF0000)))  # 2^23: normal numbers
        out[2, i] = uint_as_float(uint32(word >> uint32(24))) * x[i]
        out[3, i] = uint_as_float(word) * x[i]  # any number: left as it is


@pytest.mark.parametrize("checks", [True, False])
def test_products_have_the_bits_of_float32_products(checks: bool) -> None:
    rng = np.random.default_rng(0)
    n = 4096
    words = rng.integers(0, 2**32, n, dtype=np.uint32)
    x = rng.integers(0, 2**32, n, dtype=np.uint32).view(np.float32)  # every exponent, NaN too
    x[:6] = 0.0, -0.0, np.inf, -np.inf, 2.0**-149, np.nan
    words[:3] = 0  # also 0 times infinity
    emulator = Emulator(checks=checks)
    out = emulator.alloc((4, n), np.float32)
    emulator.launch(multiply, n // 256, 256, (emulator.upload(words), emulator.upload(x), out))
    factors = np.stack((words & 0xF00, words & 0xFF0000, words >> 24, words)).view(np.float32)
    with np.errstate(all="ignore"):
        wanted = factors * x
    assert np.array_equal(np.isnan(out), np.isnan(wanted))
    sound = ~np.isnan(wanted)
    assert np.array_equal(out[sound].view(np.uint32), wanted[sound].view(np.uint32))


def product(integer: list[str]) -> str:
    """IR that multiplies %x with the float whose bits are %n."""
    lines = (*integer, "%w = bitcast i32 %n to float", "%r = fmul float %x, %w, !dbg !7")
    return "\n".join(lines)


@pytest.mark.parametrize(
    "integer",
    [
        ["%n = and i32 %a, 15728640"],
        ["%n = lshr i32 %a, 8"],
        ["%n = zext i8 %a to i32"],
        ["%b = lshr i32 %a, 28", "%n = or disjoint i32 %b, 16"],
        ["%b = and i32 %a, 15", "%n = phi i32 [ %b, %then ], [ 240, %else ]"],
    ],
)
def test_integers_known_to_be_small_are_widened(integer: list[str]) -> None:
    text = without_subnormals(product(integer))
    assert "fmul float" not in text
    assert "sitofp i32 %n to double" in text


@pytest.mark.parametrize(
    "integer",
    [
        [],
        ["%n = and i32 %a, 16777216"],  # one bit too many
        ["%n = lshr i32 %a, 7"],
        ["%n = and i32 %a, -16"],
        ["%n = phi i32 [ 15, %then ], [ %a, %else ]"],
        ["%n = phi i32 [ 1, %entry ], [ %n, %loop ]"],  # never decided: assume nothing
    ],
)
def test_other_products_stay(integer: list[str]) -> None:
    text = product(integer)
    assert without_subnormals(text) == text
