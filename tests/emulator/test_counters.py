"""Requests, sectors and bank conflicts of kernels whose numbers can be told by hand."""

import numpy as np
import pytest
from numba import cuda, float32

from m40llm.device.emulator import Emulator
from m40llm.device.emulator.counters import Counts, Traffic
from m40llm.kernels.intrinsics import load_float4


def strided_copy(x, y, stride):
    t = cuda.grid(1)
    y[t] = x[t * stride]


def count(kernel, grid, block, *args, **options) -> Counts:
    emulator = Emulator(count=True, **options)
    emulator.launch(kernel, grid, block, args)
    assert emulator.counts is not None
    return emulator.counts


@pytest.mark.parametrize(("stride", "sectors"), [(1, 4), (2, 8), (8, 32), (0, 1)])
def test_sectors_of_a_strided_load(stride: int, sectors: int) -> None:
    emulator = Emulator()
    x, y = emulator.alloc(1024, np.float32, fill=1), emulator.alloc(128, np.float32, fill=0)
    counts = count(strided_copy, 2, 64, x, y, np.int64(stride))
    assert counts.global_loads == Traffic(requests=4, pieces=4 * sectors, bytes=512, lanes=128)
    assert counts.global_stores == Traffic(requests=4, pieces=16, bytes=512, lanes=128)
    assert counts.bank_conflicts == 0
    assert all("test_counters.py" in str(line) for line in counts.by_line)


def wide_copy(x, y):
    t = cuda.grid(1)
    a, b, c, d = load_float4(x, 4 * t)
    y[t] = a + b + c + d


def test_sectors_of_a_wide_load() -> None:
    emulator = Emulator()
    x, y = emulator.alloc(128, np.float32, fill=1), emulator.alloc(32, np.float32)
    loads = count(wide_copy, 1, 32, x, y).global_loads
    assert loads == Traffic(requests=1, pieces=16, bytes=512, lanes=32)


def column(x, y, stride):
    s = cuda.shared.array(32 * 33, float32)
    t = cuda.threadIdx.x
    for i in range(t, 32 * 33, 32):
        s[i] = x[i]
    cuda.syncthreads()
    y[t] = s[t * stride]


@pytest.mark.parametrize(("stride", "conflicts"), [(1, 0), (2, 1), (32, 31), (33, 0), (0, 0)])
def test_bank_conflicts_of_a_column(stride: int, conflicts: int) -> None:
    x, y = np.ones(32 * 33, np.float32), np.zeros(32, np.float32)
    counts = count(column, 1, 32, x, y, np.int64(stride))
    assert counts.bank_conflicts == conflicts
    assert counts.shared_stores.requests == 33
    assert counts.shared_loads.pieces == 1 + conflicts


def first_lane_stores(x, y, n):
    lane = cuda.laneid
    total = float32(0)
    for row in range(n):
        total += x[row * 32 + lane]
        if lane == 0:
            y[row] = total
    x[lane] = total


def test_a_branch_for_one_lane_does_not_split_the_loads() -> None:
    x, y = np.ones(320, np.float32), np.zeros(10, np.float32)
    counts = count(first_lane_stores, 1, 32, x, y, np.int32(10))
    assert counts.global_loads.requests == 10
    assert counts.global_loads.lanes_a_request == 32
    assert counts.global_stores.lanes == 10 + 32


def test_counting_changes_no_result() -> None:
    x, y = np.arange(32 * 33, dtype=np.float32), np.zeros(32, np.float32)
    count(column, 1, 32, x, y, np.int64(3), order="random")
    np.testing.assert_array_equal(y, x[: 3 * 32 : 3])
