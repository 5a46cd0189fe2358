"""Atomics in global and shared memory, against their serial meaning."""

import numpy as np
import pytest
from numba import cuda, int32

from m40llm.device.emulator import Emulator

INTEGERS = [np.int32, np.uint32, np.int64, np.uint64]


def arithmetic(out, x):
    t = cuda.grid(1)
    cuda.atomic.add(out, 0, x[t])
    cuda.atomic.sub(out, 1, x[t])
    cuda.atomic.max(out, 2, x[t])
    cuda.atomic.min(out, 3, x[t])


@pytest.mark.parametrize("dtype", [*INTEGERS, np.float32, np.float64])
def test_arithmetic(emulator: Emulator, dtype: type) -> None:
    x = np.random.default_rng(0).integers(1, 100, 96).astype(dtype)
    out = np.array([0, 10000, 0, 1000], dtype)
    emulator.launch(arithmetic, 3, 32, (out, x))
    np.testing.assert_array_equal(
        out, np.array([x.sum(), 10000 - x.sum(), x.max(), x.min()], dtype)
    )


def bitwise(out, x):
    t = cuda.grid(1)
    cuda.atomic.and_(out, 0, x[t])
    cuda.atomic.or_(out, 1, x[t])
    cuda.atomic.xor(out, 2, x[t])


@pytest.mark.parametrize("dtype", INTEGERS)
def test_bitwise(emulator: Emulator, dtype: type) -> None:
    x = np.random.default_rng(1).integers(0, 1 << 20, 64).astype(dtype) | dtype(1 << 21)
    out = np.array([(1 << 30) - 1, 0, 0], dtype)
    emulator.launch(bitwise, 2, 32, (out, x))
    expected = [op.reduce(x) for op in (np.bitwise_and, np.bitwise_or, np.bitwise_xor)]
    np.testing.assert_array_equal(out, np.array(expected, dtype))


def counters(out, limit):
    cuda.atomic.inc(out, 0, limit[0])
    cuda.atomic.dec(out, 1, limit[0])


@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
def test_inc_and_dec_wrap(emulator: Emulator, dtype: type) -> None:
    out = np.array([0, 0], dtype)
    emulator.launch(counters, 1, 25, (out, np.array([9], dtype)))
    assert list(out) == [25 % 10, 10 - 25 % 10]


def tickets(lock, order, out):
    t = cuda.grid(1)
    out[cuda.atomic.add(lock, 0, 1)] = t
    order[t] = cuda.atomic.exch(lock, 1, t)
    cuda.atomic.cas(lock, 2, 0, t + 1)


def test_every_thread_draws_its_own_ticket(emulator: Emulator) -> None:
    lock, order, out = np.zeros(3, np.int32), np.zeros(128, np.int32), np.zeros(128, np.int32)
    lock[1] = -1
    emulator.launch(tickets, 4, 32, (lock, order, out))
    assert lock[0] == 128
    assert lock[2] > 0
    np.testing.assert_array_equal(np.sort(out), np.arange(128))
    everyone = np.sort(np.append(order, lock[1]))
    np.testing.assert_array_equal(everyone, np.arange(-1, 128))


def shared_histogram(x, out):
    bins = cuda.shared.array(16, int32)
    t = cuda.threadIdx.x
    if t < 16:
        bins[t] = 0
    cuda.syncthreads()
    for i in range(cuda.grid(1), x.size, cuda.gridsize(1)):
        cuda.atomic.add(bins, x[i], 1)
    cuda.syncthreads()
    if t < 16:
        cuda.atomic.add(out, t, bins[t])


def test_histogram_in_shared_memory(emulator: Emulator) -> None:
    x = np.random.default_rng(2).integers(0, 16, 3000).astype(np.int32)
    out = np.zeros(16, np.int32)
    emulator.launch(shared_histogram, 3, 70, (x, out))
    np.testing.assert_array_equal(out, np.bincount(x, minlength=16))


def nan_rules(out, x):
    cuda.atomic.max(out, 0, x[0])
    cuda.atomic.nanmax(out, 1, x[0])
    cuda.atomic.max(out, 2, x[1])
    cuda.atomic.nanmin(out, 3, x[1])


def test_maxima_with_nan() -> None:
    out = np.array([1, 1, np.nan, np.nan], np.float32)
    Emulator().launch(nan_rules, 1, 1, (out, np.array([np.nan, 5], np.float32)))
    np.testing.assert_array_equal(out, np.array([1, 1, np.nan, 5], np.float32))


def last_block_sums(x, partial, count, total):
    t = cuda.threadIdx.x
    b = cuda.blockIdx.x
    is_last = cuda.shared.array(1, int32)
    if t == 0:
        partial[b] = x[b] * 2
        cuda.threadfence()
        is_last[0] = cuda.atomic.add(count, 0, 1) == cuda.gridDim.x - 1
    cuda.syncthreads()
    if is_last[0] and t == 0:
        for i in range(cuda.gridDim.x):
            total[0] += partial[i]


def test_the_last_block_finishes_the_work(emulator: Emulator) -> None:
    x, partial = np.arange(9, dtype=np.int64), emulator.alloc(9, np.int64)
    count, total = np.zeros(1, np.int32), np.zeros(1, np.int64)
    emulator.launch(last_block_sums, 9, 32, (x, partial, count, total))
    assert total[0] == 2 * x.sum()
