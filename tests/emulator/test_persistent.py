"""Persistent kernels: a grid barrier, and a kernel that the host feeds while it runs."""

import threading

import numpy as np
import pytest
from numba import cuda, float32, int32, uint32

from m40llm.device.emulator import Emulator
from m40llm.device.emulator.errors import DeadlockError
from m40llm.kernels.intrinsics import load_volatile, store_volatile


@cuda.jit(device=True)
def grid_barrier(counter, target):
    cuda.syncthreads()
    if cuda.threadIdx.x == 0:
        cuda.threadfence()
        cuda.atomic.add(counter, 0, uint32(1))
        while load_volatile(counter, 0) < target:
            pass
        cuda.threadfence()
    cuda.syncthreads()


def smooth(counter, x, y, n_steps):
    """Each step reads what other blocks wrote in the step before."""
    n = x.size
    target = uint32(0)
    for step in range(n_steps):
        for i in range(cuda.grid(1), n, cuda.gridsize(1)):
            if step & 1:
                x[i] = y[i] + y[(i + 1) % n]
            else:
                y[i] = x[i] + x[(i + 1) % n]
        target += uint32(cuda.gridDim.x)
        grid_barrier(counter, target)


@pytest.mark.parametrize("n_blocks", [1, 7])
def test_grid_barrier(emulator: Emulator, n_blocks: int) -> None:
    x = np.arange(500, dtype=np.float32) % 7
    expected = x.copy()
    for _ in range(4):
        expected = expected + np.roll(expected, -1)
    y = emulator.alloc(500, np.float32)
    emulator.launch(smooth, n_blocks, 64, (np.zeros(1, np.uint32), x, y, np.int32(4)))
    np.testing.assert_array_equal(x, expected)


def spin_with_atomics(counter, x):
    t = cuda.threadIdx.x
    if t == 0:
        x[cuda.blockIdx.x] = cuda.blockIdx.x + 1
        cuda.atomic.add(counter, 0, int32(1))
        while cuda.atomic.add(counter, 0, int32(0)) < cuda.gridDim.x:
            pass
    cuda.syncthreads()
    if t == 1:
        x[cuda.blockIdx.x] += x[(cuda.blockIdx.x + 1) % cuda.gridDim.x] * 0


def test_a_barrier_of_atomics_needs_to_be_told() -> None:
    counter, x = np.zeros(1, np.int32), np.zeros(5, np.int32)
    emulator = Emulator(time_limit_s=60)
    with pytest.raises(DeadlockError, match="see concurrent_blocks"):
        emulator.launch(spin_with_atomics, 5, 32, (counter, x))
    counter[:] = 0
    emulator.launch(spin_with_atomics, 5, 32, (counter, x), concurrent_blocks=True)
    np.testing.assert_array_equal(x, np.arange(1, 6))


def server(commands, answers, x):
    """Answers command n > 0 with 10 n; stops at a negative one."""
    t = cuda.threadIdx.x
    command = cuda.shared.array(1, int32)
    seen = int32(0)
    while True:
        if t == 0:
            value = load_volatile(commands, 0)
            while value == seen:
                value = load_volatile(commands, 0)
            command[0] = value
        cuda.syncthreads()
        seen = command[0]
        if seen < 0:
            break
        x[t] += float32(seen)
        cuda.syncthreads()
        if t == 0:
            cuda.threadfence_system()
            store_volatile(answers, 0, int32(10 * seen))


def test_a_kernel_fed_by_the_host() -> None:
    commands, answers = np.zeros(1, np.int32), np.zeros(1, np.int32)
    x = np.zeros(64, np.float32)
    launch = threading.Thread(
        target=Emulator(time_limit_s=60).launch,
        args=(server, 1, 64, (commands, answers, x)),
        kwargs={"wait_s": 30.0},
    )
    launch.start()
    for command in (3, 8, 1):
        commands[0] = command
        while answers[0] != 10 * command and launch.is_alive():
            pass
    commands[0] = -1
    launch.join(timeout=30)
    assert not launch.is_alive()
    assert (x == 12).all()
