"""Kernels with one bug each: the emulator must name it, with line, block and thread."""

import numpy as np
import pytest
from numba import cuda, float32, int32

from m40llm.device.emulator import Emulator, errors
from m40llm.kernels.intrinsics import (
    load_float4,
    load_float4_readonly,
    load_float4_shared,
    load_volatile,
)

FULL = 0xFFFFFFFF


@pytest.fixture(params=["ascending", "descending", "random"])
def emulator(request: pytest.FixtureRequest) -> Emulator:
    return Emulator(order=request.param, seed=3, n_threads=1, time_limit_s=20)


def one_past_the_end(x, y, n):
    t = cuda.grid(1)
    if t <= n:
        y[t] = x[t] * float32(2)  # reads x[n]


def test_out_of_bounds_read(emulator: Emulator) -> None:
    x, y = emulator.alloc(100, np.float32, fill=1), emulator.alloc(101, np.float32)
    with pytest.raises(errors.OutOfBoundsError) as caught:
        emulator.launch(one_past_the_end, 4, 32, (x, y, np.int32(100)))
    text = str(caught.value)
    assert "one_past_the_end, test_planted_bugs.py:" in text
    assert "`y[t] = x[t] * float32(2)  # reads x[n]`" in text
    assert "block (3, 0, 0), thread (4, 0, 0) reads 4 bytes outside every live array" in text
    assert "byte 400 of x float32[100] (400 bytes)" in text


def test_out_of_bounds_write_leaves_memory_alone(emulator: Emulator) -> None:
    buffer = np.full(200, 7, np.float32)
    x, y = np.ones(101, np.float32), buffer[50:150]
    with pytest.raises(errors.OutOfBoundsError, match=r"byte 400 of y"):
        emulator.launch(one_past_the_end, 4, 32, (x, y, np.int32(100)))
    assert (buffer[:50] == 7).all()
    assert (buffer[150:] == 7).all()


def shared_overflow(x):
    first = cuda.shared.array(8, float32)
    second = cuda.shared.array(8, float32)
    t = cuda.threadIdx.x
    second[t & 7] = x[t]
    first[t] = x[t]  # t reaches 8
    cuda.syncthreads()
    x[t] = first[t & 7] + second[t & 7]


def test_shared_overflow_into_a_neighbour(emulator: Emulator) -> None:
    with pytest.raises(errors.OutOfBoundsError, match=r"writes 4 bytes .* shared array 0"):
        emulator.launch(shared_overflow, 1, 9, (np.zeros(9, np.float32),))


def local_overflow(x, n):
    values = cuda.local.array(4, float32)
    for i in range(n):
        values[i] = x[i]
    x[0] = values[n - 1] + values[n >> 1]


def test_local_overflow(emulator: Emulator) -> None:
    x = np.ones(8, np.float32)
    emulator.launch(local_overflow, 1, 1, (x, np.int32(4)))
    with pytest.raises(errors.OutOfBoundsError, match="a local array"):
        emulator.launch(local_overflow, 1, 1, (x, np.int32(5)))


def forgets_the_tail(x, y):
    s = cuda.shared.array(64, float32)
    t = cuda.threadIdx.x
    if t < 60:
        s[t] = x[t]
    cuda.syncthreads()
    y[t] = s[63 - t]


def test_uninitialised_shared_memory(emulator: Emulator) -> None:
    x, y = np.ones(64, np.float32), np.zeros(64, np.float32)
    with pytest.raises(errors.UninitialisedReadError, match=r"shared array 0 of 256 bytes"):
        emulator.launch(forgets_the_tail, 1, 64, (x, y))


def copy(x, y):
    t = cuda.grid(1)
    if t < x.size:
        y[t] = x[t]


def test_uninitialised_device_memory(emulator: Emulator) -> None:
    x, y, z = (emulator.alloc(64, np.float32) for _ in range(3))
    emulator.write(x[:60], np.ones(60))
    with pytest.raises(errors.UninitialisedReadError, match=r"byte 2.. of x float32\[64\]"):
        emulator.launch(copy, 2, 32, (x, y))
    emulator.write(x[60:], np.ones(4))
    emulator.launch(copy, 2, 32, (x, y))
    emulator.launch(copy, 2, 32, (y, z))
    assert (z == 1).all()


def wide(x, y, offset):
    a, b, c, d = load_float4(x, offset + 4 * cuda.threadIdx.x)
    y[cuda.threadIdx.x] = a + b + c + d


def test_misaligned_vector_load(emulator: Emulator) -> None:
    x, y = emulator.alloc(160, np.float32, fill=1), np.zeros(32, np.float32)
    emulator.launch(wide, 1, 32, (x, y, np.int64(4)))
    with pytest.raises(errors.MisalignedAccessError, match=r"reads 16 bytes misaligned"):
        emulator.launch(wide, 1, 32, (x, y, np.int64(2)))


def test_write_to_read_only(emulator: Emulator) -> None:
    x = emulator.upload(np.ones(64, np.float32))
    y = emulator.upload(np.ones(64, np.float32), read_only=True)
    with pytest.raises(errors.ReadOnlyWriteError, match=r"in a read-only array: byte .* of y"):
        emulator.launch(copy, 2, 32, (x, y))
    frozen = np.ones(64, np.float32)
    frozen.flags.writeable = False
    with pytest.raises(errors.ReadOnlyWriteError):
        emulator.launch(copy, 2, 32, (x, frozen))


def stale(x):
    t = cuda.threadIdx.x
    x[4 * t] = float32(1)
    cuda.syncthreads()
    a, b, c, d = load_float4_readonly(x, 4 * ((t + 1) & 31))
    x[4 * t + 1] = a + b + c + d


def test_read_only_cache_is_stale(emulator: Emulator) -> None:
    with pytest.raises(errors.ReadOnlyWriteError, match=r"through the read-only cache"):
        emulator.launch(stale, 1, 32, (emulator.alloc(128, np.float32, fill=0),))


def test_a_freed_array_is_gone(emulator: Emulator) -> None:
    x = emulator.alloc(64, np.float32, fill=1)
    begin = x.ctypes.data
    assert emulator.memory.owner(begin) is not None
    del x
    assert emulator.memory.owner(begin) is None


def divergent_barrier(x):
    t = cuda.threadIdx.x
    if t < 32:
        x[t] = float32(1)
        cuda.syncthreads()
    else:
        x[t] = float32(2)
        cuda.syncthreads()  # another one
        x[t] += float32(1)


def test_divergent_barriers(emulator: Emulator) -> None:
    with pytest.raises(
        errors.BarrierDivergenceError, match=r"waits here, thread .* at .*syncthreads"
    ):
        emulator.launch(divergent_barrier, 1, 64, (np.zeros(64, np.float32),))


def barrier_in_a_loop_of_unequal_length(x):
    t = cuda.threadIdx.x
    for _ in range(t >> 5):
        cuda.syncthreads()
        x[t] += float32(1)
    v = x[t]
    for offset in (16, 8, 4, 2, 1):
        v += cuda.shfl_xor_sync(FULL, v, offset)
    x[t] = v
    cuda.syncthreads()
    x[t] += float32(1)


def test_loops_with_unequal_barriers(emulator: Emulator) -> None:
    with pytest.raises(errors.BarrierDivergenceError):
        emulator.launch(barrier_in_a_loop_of_unequal_length, 1, 64, (np.zeros(64, np.float32),))


def lane_left_early(x):
    t = cuda.threadIdx.x
    if t == 5:
        return
    x[t] = cuda.shfl_xor_sync(FULL, x[t], 1)


def test_shuffle_from_an_exited_lane(emulator: Emulator) -> None:
    with pytest.raises(errors.InactiveLaneError, match=r"reads lane 5"):
        emulator.launch(lane_left_early, 1, 32, (np.zeros(32, np.float32),))


def short_block(x):
    t = cuda.threadIdx.x
    x[t] += cuda.shfl_down_sync(FULL, x[t], 8)


def test_shuffle_from_a_lane_that_never_was(emulator: Emulator) -> None:
    with pytest.raises(errors.InactiveLaneError, match=r"reads lane 1[2-9]"):
        emulator.launch(short_block, 1, 12, (np.zeros(12, np.float32),))


def branch_with_a_full_mask(x):
    t = cuda.threadIdx.x
    v = x[t]
    if t < 16:
        v += cuda.shfl_xor_sync(FULL, v, 1)
    cuda.syncthreads()
    x[t] = v


def test_shuffle_whose_mask_names_absent_lanes(emulator: Emulator) -> None:
    with pytest.raises(errors.WarpDivergenceError, match=r"waits for the lanes of mask 0xffffffff"):
        emulator.launch(branch_with_a_full_mask, 1, 32, (np.zeros(32, np.float32),))


def not_in_its_mask(x):
    t = cuda.threadIdx.x
    x[t] = cuda.shfl_xor_sync(0xFFFF, x[t], 1)


def test_shuffle_by_a_lane_outside_the_mask(emulator: Emulator) -> None:
    with pytest.raises(errors.WarpDivergenceError, match=r"its own lane is not in mask 0x0000ffff"):
        emulator.launch(not_in_its_mask, 1, 32, (np.zeros(32, np.float32),))


def waits_for_nobody(flag, x):
    if cuda.threadIdx.x == 0:
        while load_volatile(flag, 0) == 0:
            pass
    cuda.syncthreads()
    x[cuda.threadIdx.x] = float32(1)


def test_a_poll_that_never_ends(emulator: Emulator) -> None:
    flag, x = np.zeros(1, np.int32), np.zeros(64, np.float32)
    with pytest.raises(errors.DeadlockError, match="what is polled for never comes"):
        emulator.launch(waits_for_nobody, 2, 64, (flag, x))


def divides(x, y):
    for i in range(0, x.size, y[0]):
        x[i] = float32(1)


def test_an_exception_in_a_kernel(emulator: Emulator) -> None:
    with pytest.raises(errors.KernelRaisedError):
        emulator.launch(divides, 1, 1, (np.zeros(4, np.float32), np.zeros(1, np.int32)))


# ------------------------------------------------------------- races: results that depend on order
def no_barrier(x, y):
    s = cuda.shared.array(128, float32)
    t = cuda.threadIdx.x
    s[t] = float32(0)
    cuda.syncthreads()
    s[t] = x[t]
    y[t] = s[127 - t]  # a barrier is missing before this


def lost_update(counts):
    counts[0] += int32(1)  # not atomic


def too_early(x):
    s = cuda.shared.array(64, float32)
    t = cuda.threadIdx.x
    s[t] = x[t]
    cuda.syncthreads()
    for _ in range(3):
        v = s[(t + 1) & 63]
        cuda.syncthreads()
        s[t] = v + float32(1)  # and one here, at the end of the loop
    cuda.syncthreads()
    x[t] = s[t]


def results(kernel, block, make_args, orders) -> set[bytes]:
    found = set()
    for order, seed in orders:
        args = make_args()
        Emulator(order=order, seed=seed).launch(kernel, 1, block, args)
        found.add(args[-1].tobytes())
    return found


RANDOM = [("random", seed) for seed in range(4)]


def test_races_show_as_differences() -> None:
    x = np.arange(128, dtype=np.float32)
    assert len(results(no_barrier, 128, lambda: (x, np.zeros_like(x)), RANDOM)) > 1
    assert len(results(too_early, 64, lambda: (x[:64].copy(),), RANDOM)) > 1
    assert len(results(lost_update, 64, lambda: (np.zeros(1, np.int32),), RANDOM)) > 1


def test_a_right_kernel_gives_one_result() -> None:
    x = np.arange(64, dtype=np.float32)
    orders = [*RANDOM, ("ascending", 0), ("descending", 0)]
    assert len(results(neighbour_sums, 64, lambda: (x.copy(),), orders)) == 1


def neighbour_sums(x):
    s = cuda.shared.array(64, float32)
    t = cuda.threadIdx.x
    s[t] = x[t]
    cuda.syncthreads()
    for _ in range(3):
        v = s[(t + 1) & 63]
        cuda.syncthreads()
        s[t] = v + float32(1)
        cuda.syncthreads()
    x[t] = s[t]


@cuda.jit(device=True)
def element(x, i):
    return x[i + 1]


def calls_a_faulty_function(x):
    t = cuda.threadIdx.x
    x[t] = element(x, t)


def test_lines_in_device_functions(emulator: Emulator) -> None:
    with pytest.raises(errors.OutOfBoundsError) as caught:
        emulator.launch(calls_a_faulty_function, 1, 64, (np.zeros(64, np.float32),))
    text = str(caught.value)
    assert "called from test_planted_bugs.py:" in text
    assert "`return x[i + 1]`" in text
    assert "thread (63, 0, 0)" in text


def polls_a_shared_array(y):
    flags = cuda.shared.array(32, int32)
    flags[cuda.threadIdx.x] = 1
    cuda.syncthreads()
    y[cuda.threadIdx.x] = load_volatile(flags, cuda.threadIdx.x)


def takes_a_global_array_for_shared(x, y):
    a, b, c, d = load_float4_shared(x, 0)
    y[cuda.threadIdx.x] = a + b + c + d


def test_an_instruction_for_another_address_space(emulator: Emulator) -> None:
    y = np.zeros(32, np.int32)
    with pytest.raises(errors.AddressSpaceError, match="reads 4 bytes in another address space"):
        emulator.launch(polls_a_shared_array, 1, 32, (y,))
    x, y = np.ones(4, np.float32), np.zeros(32, np.float32)
    with pytest.raises(errors.AddressSpaceError, match="byte 0 of x"):
        emulator.launch(takes_a_global_array_for_shared, 1, 32, (x, y))
