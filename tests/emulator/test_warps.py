"""Shuffles, votes and warp barriers against what PTX says of them."""

import numpy as np
import pytest
from numba import cuda, float32, float64, int32, int64

from m40llm.device.emulator import Emulator

FULL = 0xFFFFFFFF


def shuffles(x, out, distance):
    t = cuda.threadIdx.x
    out[0, t] = cuda.shfl_sync(FULL, x[t], distance)
    out[1, t] = cuda.shfl_up_sync(FULL, x[t], distance)
    out[2, t] = cuda.shfl_down_sync(FULL, x[t], distance)
    out[3, t] = cuda.shfl_xor_sync(FULL, x[t], distance)


@pytest.mark.parametrize("dtype", [np.int32, np.float32, np.int64, np.float64])
@pytest.mark.parametrize("distance", [0, 1, 5, 16, 31])
def test_shuffle_modes(emulator: Emulator, dtype: type, distance: int) -> None:
    x = (
        (np.arange(64) * 3 - 7).astype(dtype) / dtype(2)
        if dtype in (np.float32, np.float64)
        else (np.arange(64, dtype=dtype) << (np.dtype(dtype).itemsize * 8 - 8))
    )
    out = np.zeros((4, 64), dtype)
    emulator.launch(shuffles, 1, 64, (x, out, np.int32(distance)))
    lane, base = np.arange(64) % 32, np.arange(64) // 32 * 32
    np.testing.assert_array_equal(out[0], x[base + distance])
    np.testing.assert_array_equal(
        out[1], x[base + np.where(lane >= distance, lane - distance, lane)]
    )
    np.testing.assert_array_equal(
        out[2], x[base + np.where(lane + distance < 32, lane + distance, lane)]
    )
    np.testing.assert_array_equal(out[3], x[base + (lane ^ distance)])


def votes(x, out):
    t = cuda.threadIdx.x
    out[0, t] = cuda.all_sync(FULL, x[t] > 0)
    out[1, t] = cuda.any_sync(FULL, x[t] > 0)
    out[2, t] = cuda.eq_sync(FULL, x[t] > 0)
    out[3, t] = int32(cuda.ballot_sync(FULL, x[t] > 0))


def test_votes(emulator: Emulator) -> None:
    x = np.zeros(128, np.int32)
    x[32:64] = 1
    x[70] = 1
    out = np.full((4, 128), -1, np.int32)
    emulator.launch(votes, 1, 128, (x, out))
    warps = x.reshape(4, 32) > 0
    np.testing.assert_array_equal(out[0].reshape(4, 32)[:, 0], warps.all(1))
    np.testing.assert_array_equal(out[1].reshape(4, 32)[:, 5], warps.any(1))
    np.testing.assert_array_equal(out[2].reshape(4, 32)[:, 9], warps.all(1) | ~warps.any(1))
    assert out[3].view(np.uint32)[0] == 0
    assert out[3].view(np.uint32)[33] == 0xFFFFFFFF
    assert out[3].view(np.uint32)[64] == 1 << 6


def divergent_halves(x):
    t = cuda.threadIdx.x
    if t & 16:
        v = x[t]
        for offset in (8, 4, 2, 1):
            v += cuda.shfl_xor_sync(0xFFFF0000, v, offset)
    else:
        v = x[t] * float32(2)
        for offset in (1, 2, 4, 8):
            v += cuda.shfl_xor_sync(0x0000FFFF, v, offset)
    x[t] = v


def test_shuffles_in_divergent_branches(emulator: Emulator) -> None:
    x = np.arange(64, dtype=np.float32)
    sums = x.reshape(4, 16).sum(1) * [2, 1, 2, 1]
    emulator.launch(divergent_halves, 1, 64, (x,))
    np.testing.assert_array_equal(x, np.repeat(sums, 16))


def neighbours_in_shared(x, y):
    s = cuda.shared.array(64, float32)
    t = cuda.threadIdx.x
    s[t] = x[t]
    cuda.syncwarp()
    y[t] = s[(t & ~31) | ((t + 1) & 31)]
    if t < 8:
        cuda.syncwarp(0xFF)
        s[t] = float32(t)
        cuda.syncwarp(0xFF)
        y[t] += s[7 - t]


def test_warp_barriers(emulator: Emulator) -> None:
    x = np.arange(64, dtype=np.float32) ** 2
    y = np.zeros(64, np.float32)
    emulator.launch(neighbours_in_shared, 1, 64, (x, y))
    t = np.arange(64)
    expected = x[(t & ~31) | ((t + 1) & 31)]
    expected[:8] += 7 - t[:8]
    np.testing.assert_array_equal(y, expected)


def who_is_active(out):
    t = cuda.threadIdx.x
    if t % 3 == 0:
        out[t] = int64(cuda.activemask()) & 0xFFFFFFFF
    else:
        out[t] = 0


def test_activemask(emulator: Emulator) -> None:
    """The lanes there together see each other; only a drawn order may split the branch."""
    out = np.full(32, -1, np.int64)
    emulator.launch(who_is_active, 1, 32, (out,))
    active = np.arange(0, 32, 3)
    for t in active:
        together = [u for u in active if out[u] == out[t]]
        assert out[t] == sum(1 << u for u in together)
    assert emulator.settings.interleave or len(set(out[active])) == 1
    assert out.sum() == out[active].sum()


def partial_warp_sum(x, y):
    t = cuda.threadIdx.x
    v = float64(x[t])
    mask = 0xFF if t >= 32 else FULL
    for offset in (4, 2, 1):
        v += cuda.shfl_down_sync(mask, v, offset)
    y[t] = v


def test_last_warp_of_eight_lanes() -> None:
    x = np.ones(40, np.float32)
    y = np.zeros(40)
    Emulator(checks=False).launch(partial_warp_sum, 1, 32, (x, y))
    assert y[0] == 8
