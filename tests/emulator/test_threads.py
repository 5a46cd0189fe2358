"""Indices, shared and local memory, barriers: tiny kernels against NumPy."""

import numpy as np
import pytest
from numba import cuda, float32, int32

from m40llm.device.emulator import Emulator, EmulatorError


def indices_3d(out):
    x, y, z = cuda.grid(3)
    nx, ny, nz = cuda.gridsize(3)
    if x < out.shape[2] and y < out.shape[1] and z < out.shape[0]:
        out[z, y, x] = int32(x + 100 * y + 10000 * z)
    if x == 0 and y == 0 and z == 0:
        out[0, 0, 0] = int32(nx * ny * nz)


def test_grids_in_three_dimensions(emulator: Emulator) -> None:
    out = np.full((3, 5, 7), -1, np.int32)
    emulator.launch(indices_3d, (2, 3, 2), (4, 2, 2), (out,))
    z, y, x = np.indices(out.shape)
    expected = x + 100 * y + 10000 * z
    expected[0, 0, 0] = 8 * 6 * 4
    np.testing.assert_array_equal(out, expected)


def registers(out):
    t = cuda.threadIdx.x + cuda.blockDim.x * (cuda.threadIdx.y + cuda.blockDim.y * cuda.threadIdx.z)
    out[0, t] = cuda.laneid
    out[1, t] = cuda.warpsize
    out[2, t] = cuda.gridDim.y
    out[3, t] = int32(cuda.lanemask_lt() & 0x7FFFFFFF)


def test_lane_numbers_in_a_partial_warp(emulator: Emulator) -> None:
    out = np.zeros((4, 60), np.int32)
    emulator.launch(registers, (1, 3), (5, 4, 3), (out,))
    lane = np.arange(60) % 32
    np.testing.assert_array_equal(out[0], lane)
    np.testing.assert_array_equal(out[1], 32)
    np.testing.assert_array_equal(out[2], 3)
    np.testing.assert_array_equal(out[3], (1 << lane) - 1)


def transpose(x, y):
    tile = cuda.shared.array((16, 17), float32)
    other = cuda.shared.array(4, int32)
    tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
    if ty == 0 and tx < 4:
        other[tx] = tx
    tile[ty, tx] = x[cuda.blockIdx.y * 16 + ty, cuda.blockIdx.x * 16 + tx]
    cuda.syncthreads()
    y[cuda.blockIdx.x * 16 + ty, cuda.blockIdx.y * 16 + tx] = tile[tx, ty] + float32(other[3])


def test_two_shared_arrays(emulator: Emulator) -> None:
    x = np.arange(48 * 32, dtype=np.float32).reshape(48, 32)
    y = emulator.alloc((32, 48), np.float32)
    emulator.launch(transpose, (2, 3), (16, 16), (x, y))
    np.testing.assert_array_equal(y, x.T + 3)


def reverse(x, n):
    fixed = cuda.shared.array(8, float32)
    buffer = cuda.shared.array(0, float32)
    t = cuda.threadIdx.x
    if t < 8:
        fixed[t] = float32(1)
    for i in range(t, n, cuda.blockDim.x):
        buffer[i] = x[i]
    cuda.syncthreads()
    for i in range(t, n, cuda.blockDim.x):
        x[i] = buffer[n - 1 - i] + fixed[i & 7]


def test_dynamic_shared_memory(emulator: Emulator) -> None:
    x = np.arange(1000, dtype=np.float32)
    emulator.launch(reverse, 1, 96, (x, np.int32(1000)), shared_bytes=4000)
    np.testing.assert_array_equal(x, np.arange(1000)[::-1] + 1)


def too_much_shared(x):
    big = cuda.shared.array(12288, float32)
    big[cuda.threadIdx.x] = x[0]
    x[0] = big[cuda.threadIdx.x]


def test_a_launch_that_no_card_would_take() -> None:
    x = np.zeros(1, np.float32)
    with pytest.raises(EmulatorError, match="49152 \\+ 4 bytes of shared memory"):
        Emulator().launch(too_much_shared, 1, 1, (x,), shared_bytes=4)
    with pytest.raises(EmulatorError, match="at most 1024 threads"):
        Emulator().launch(too_much_shared, 1, 1025, (x,))


def histogram_in_registers(x, out):
    counts = cuda.local.array((2, 4), int32)
    t = cuda.grid(1)
    for i in range(x.size):
        counts[x[i] >> 2, x[i] & 3] += 1
    cuda.syncthreads()
    for i in range(8):
        out[t, i] = counts[i >> 2, i & 3]


def test_local_arrays_survive_a_barrier(emulator: Emulator) -> None:
    x = np.random.default_rng(0).integers(0, 8, 50).astype(np.int32)
    out = np.zeros((40, 8), np.int32)
    emulator.launch(histogram_in_registers, 1, 40, (x, out))
    np.testing.assert_array_equal(out, np.tile(np.bincount(x, minlength=8), (40, 1)))


def barrier_votes(x, out):
    t = cuda.threadIdx.x
    bit = int32(x[t])
    out[0, t] = cuda.syncthreads_count(bit)
    out[1, t] = cuda.syncthreads_and(bit)
    out[2, t] = cuda.syncthreads_or(bit)


@pytest.mark.parametrize("ones", [0, 1, 33, 70])
def test_barriers_that_count(emulator: Emulator, ones: int) -> None:
    x = np.zeros(70, np.int32)
    x[:ones] = 1
    out = np.full((3, 70), -1, np.int32)
    emulator.launch(barrier_votes, 1, 70, (x, out))
    np.testing.assert_array_equal(out[0], ones)
    np.testing.assert_array_equal(out[1], ones == 70)
    np.testing.assert_array_equal(out[2], ones > 0)


def early_return(x, n):
    t = cuda.grid(1)
    if t >= n:
        return
    x[t] = t
    cuda.syncthreads()
    x[t] += x[(t + 1) % n]


def early_return_is_fine(x, n):
    t = cuda.grid(1)
    if t >= n:
        return
    x[t] = x[t] * float32(2)


def test_threads_that_return_early(emulator: Emulator) -> None:
    x = np.arange(100, dtype=np.float32)
    emulator.launch(early_return_is_fine, 4, 32, (x, np.int64(90)))
    np.testing.assert_array_equal(x, np.where(np.arange(100) < 90, 2, 1) * np.arange(100))


def strided(x, y):
    t = cuda.grid(1)
    if t < x.shape[0]:
        y[t] = x[t, 1]


def test_views_with_strides(emulator: Emulator) -> None:
    x = np.arange(60, dtype=np.float64).reshape(10, 6)[::2, ::3]
    y = np.zeros(5)
    emulator.launch(strided, 1, 32, (x, y))
    np.testing.assert_array_equal(y, x[:, 1])


@cuda.jit(device=True)
def square(v):
    return v * v


@cuda.jit(fastmath=True)
def with_device_function(x, y, scale, flag):
    t = cuda.grid(1)
    if flag and t < x.size:
        y[t] = square(x[t]) * scale


def test_dispatchers_device_functions_and_scalars(emulator: Emulator) -> None:
    x = np.arange(20, dtype=np.float32)
    y = np.zeros(20, np.float32)
    emulator.launch(with_device_function, 1, 32, (x, y, np.float32(0.5), True))
    np.testing.assert_array_equal(y, x * x / 2)
    emulator.launch(with_device_function, 1, 32, (x, y, np.float32(4), False))
    np.testing.assert_array_equal(y, x * x / 2)


def test_blocks_on_two_cores_equal_one() -> None:
    x = np.arange(48 * 32, dtype=np.float32).reshape(48, 32)
    results = []
    for n_threads in (1, 2, 3):
        y = np.zeros((32, 48), np.float32)
        Emulator(n_threads=n_threads).launch(transpose, (2, 3), (16, 16), (x, y))
        results.append(y)
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def far_row(cache, row, column):
    cache[row, column] = cache[row, column] + float32(1)


def test_offsets_beyond_32_bits() -> None:
    """A sparse array of 16 GiB: only the pages that are touched exist."""
    emulator = Emulator()
    cache = emulator.alloc((1 << 20, 1 << 12), np.float32, fill=0)
    row, column = (1 << 20) - 1, (1 << 12) - 2
    emulator.launch(far_row, 1, 1, (cache, np.int64(row), np.int64(column)))
    assert cache[row, column] == 1
    assert cache[row & 0x7FFFF, column] == 0
