"""Mathematics: libdevice and Numba's own functions, FP16 conversions, against NumPy."""

import math

import numpy as np
import pytest
from numba import cuda, float32, int32, uint32
from numba.cuda import libdevice
from numba.cuda.types import float16

from m40llm.device.emulator import Emulator
from m40llm.device.emulator.errors import UnsupportedKernelError

ULPS = 8  # a library's float32 functions err by a few units in the last place


def all_of_math(x, out):
    t = cuda.grid(1)
    v = x[t]
    out[0, t] = math.exp(v)
    out[1, t] = math.log(v)
    out[2, t] = math.sin(v)
    out[3, t] = math.cos(v)
    out[4, t] = math.sqrt(v)
    out[5, t] = math.tanh(v)
    out[6, t] = math.pow(v, float32(1.5))
    out[7, t] = math.erf(v)
    out[8, t] = math.floor(v) + math.ceil(v) * float32(100)
    out[9, t] = math.fabs(-v) + abs(-v)
    out[10, t] = max(v, float32(2)) + min(v, float32(3))
    out[11, t] = v ** float32(2.5)
    out[12, t] = math.log1p(v) + math.expm1(v)
    out[13, t] = math.atan2(v, float32(2))
    out[14, t] = math.fmod(v, float32(0.75))
    out[15, t] = float32(1) / v


def expected_math(x: np.ndarray) -> np.ndarray:
    erf = np.array([math.erf(v) for v in x])
    rows = [np.exp(x), np.log(x), np.sin(x), np.cos(x), np.sqrt(x), np.tanh(x), x**1.5, erf]
    rows += [np.floor(x) + np.ceil(x) * 100, 2 * x, np.maximum(x, 2) + np.minimum(x, 3), x**2.5]
    rows += [np.log1p(x) + np.expm1(x), np.arctan2(x, 2), np.fmod(x, 0.75), 1 / x]
    return np.array(rows)


@pytest.mark.parametrize("fastmath", [False, True])
def test_math(emulator: Emulator, fastmath: bool) -> None:
    x = np.linspace(0.03, 6, 96, dtype=np.float32)
    out = np.zeros((16, 96), np.float32)
    emulator.launch(cuda.jit(fastmath=fastmath)(all_of_math), 3, 32, (x, out))
    expected = expected_math(x.astype(np.float64))
    bound = ULPS * 2.0**-23 * np.maximum(np.abs(expected), 2.0**-3)
    assert (np.abs(out - expected) <= bound).all(), np.argwhere(np.abs(out - expected) > bound)


def libdevice_floats(x, out):
    t = cuda.grid(1)
    v = x[t]
    out[0, t] = libdevice.fast_expf(v)
    out[1, t] = libdevice.fast_logf(v)
    out[2, t] = libdevice.fast_powf(v, float32(2))
    out[3, t] = libdevice.rsqrtf(v)
    out[4, t] = libdevice.fmaf(v, v, float32(1))
    out[5, t] = libdevice.rintf(v)
    out[6, t] = libdevice.roundf(v)
    out[7, t] = libdevice.truncf(-v)
    out[8, t] = libdevice.fast_fdividef(v, float32(3))
    out[9, t] = libdevice.float2int_rn(v)
    out[10, t] = libdevice.copysignf(v, float32(-1))
    out[11, t] = libdevice.exp2f(v)
    out[12, t] = libdevice.saturatef(v)
    s, c = libdevice.sincosf(v)
    out[13, t] = s + c
    out[14, t] = libdevice.frcp_rn(v)
    out[15, t] = libdevice.isinff(v) + libdevice.finitef(v)


def test_libdevice(emulator: Emulator) -> None:
    x = np.linspace(0.25, 8, 32, dtype=np.float32)
    out = np.zeros((16, 32), np.float32)
    emulator.launch(libdevice_floats, 1, 32, (x, out))
    x = x.astype(np.float64)
    rounded = np.floor(x + 0.5)
    rows = [np.exp(x), np.log(x), x**2, x**-0.5, x * x + 1, np.rint(x), rounded, np.trunc(-x)]
    rows += [x / 3, np.rint(x), -x, np.exp2(x), np.minimum(x, 1), np.sin(x) + np.cos(x), 1 / x]
    expected = np.array([*rows, np.ones(32)])
    bound = ULPS * 2.0**-23 * np.maximum(np.abs(expected), 0.5)
    assert (np.abs(out - expected) <= bound).all(), np.argwhere(np.abs(out - expected) > bound)


def integers(x, out):
    t = cuda.grid(1)
    v = x[t]
    out[0, t] = cuda.popc(v)
    out[1, t] = cuda.clz(v)
    out[2, t] = cuda.ffs(v)
    out[3, t] = int32(cuda.brev(uint32(v)))
    out[4, t] = max(v, int32(7)) - min(v, int32(7))
    out[5, t] = v // int32(3)
    out[6, t] = v % int32(5)
    out[7, t] = cuda.selp(v > 0, int32(4), int32(9))
    out[8, t] = libdevice.mulhi(v, v)


def test_integers(emulator: Emulator) -> None:
    x = np.array([1, 2, 3, 7, 8, 255, 256, 12345678, 2**31 - 1, 5, 6, 99], np.int32)
    out = np.zeros((9, 12), np.int32)
    emulator.launch(integers, 1, 12, (x, out))
    bits = [f"{v:032b}" for v in x]
    np.testing.assert_array_equal(out[0], [b.count("1") for b in bits])
    np.testing.assert_array_equal(out[1], [b.index("1") for b in bits])
    np.testing.assert_array_equal(out[2], [b[::-1].index("1") + 1 for b in bits])
    np.testing.assert_array_equal(out[3].view(np.uint32), [int(b[::-1], 2) for b in bits])
    np.testing.assert_array_equal(out[4], np.abs(x - 7))
    np.testing.assert_array_equal(out[5], x // 3)
    np.testing.assert_array_equal(out[6], x % 5)
    np.testing.assert_array_equal(out[7], 4)
    np.testing.assert_array_equal(out[8], x.astype(np.int64) ** 2 >> 32)


def halves(h, x, back, n):
    t = cuda.grid(1)
    if t < n:
        x[t] = float32(h[t])
        back[t] = float16(x[t])
        back[t + n] = float16(x[t] * float32(1.0005))


def test_every_half_converts_exactly(emulator: Emulator) -> None:
    h = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16).view(np.float16)
    x, back = np.zeros(1 << 16, np.float32), np.zeros(1 << 17, np.float16)
    emulator.launch(halves, 1 << 6, 1 << 10, (h, x, back, np.int32(1 << 16)))
    with np.errstate(invalid="ignore", over="ignore"):
        np.testing.assert_array_equal(x, h.astype(np.float32))
        rounded = (h.astype(np.float32) * np.float32(1.0005)).astype(np.float16)
    np.testing.assert_array_equal(back[: 1 << 16], h)
    np.testing.assert_array_equal(back[1 << 16 :], rounded)


def halves_and_integers(h, out, back):
    t = cuda.grid(1)
    out[t] = int32(h[t])
    back[t] = float16(out[t])


def test_halves_and_integers(emulator: Emulator) -> None:
    h = np.array([0, 1, -2, 3, 1000, -2048, 17, 5], np.float16)
    out, back = np.zeros(8, np.int32), np.zeros(8, np.float16)
    emulator.launch(halves_and_integers, 1, 8, (h, out, back))
    np.testing.assert_array_equal(out, h.astype(np.int32))
    np.testing.assert_array_equal(back, h)


def bessel(x):
    x[0] = libdevice.j0f(x[0])


def test_what_has_no_twin_is_named() -> None:
    with pytest.raises(UnsupportedKernelError, match="__nv_j0f"):
        Emulator().launch(bessel, 1, 1, (np.zeros(1, np.float32),))


def half_sums(h):
    h[0] = h[1] + h[2]


def test_half_arithmetic_which_sm_52_has_not_is_refused() -> None:
    with pytest.raises(UnsupportedKernelError, match="half"):
        Emulator().launch(half_sums, 1, 1, (np.zeros(3, np.float16),))
