"""One launch: arguments packed, blocks shared out over the cores, pools run until all are done."""

import math
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from m40llm.device.emulator import records, scheduler
from m40llm.device.emulator.counters import Counts, counts_of
from m40llm.device.emulator.errors import DeadlockError, EmulatorError
from m40llm.device.emulator.pool import Pool
from m40llm.device.emulator.program import Program
from m40llm.device.emulator.report import Scene, report

MAX_THREADS: Final = 1024  # of a block, on sm_52
MAX_SHARED_BYTES: Final = 48 * 1024  # of a block
MAX_IDLE_ROUNDS: Final = 1000
MIN_THREADS_TO_SPREAD: Final = 1024  # of a launch: fewer are not worth waking a core
RANDOM_PLACES: Final = 4  # blocks at once on a core, where the order is random
ORDERS: Final = {
    "ascending": scheduler.ASCENDING,
    "descending": scheduler.DESCENDING,
    "random": scheduler.RANDOM,
}
Dims = tuple[int, int, int]


@dataclass(frozen=True)
class Settings:
    """How the emulator runs launches; see Emulator."""

    order: str = "ascending"
    seed: int = 0
    checks: bool = True
    interleave: bool = False  # a random order only
    n_threads: int | None = None
    count: bool = False
    time_limit_s: float | None = None


@dataclass(frozen=True)
class Geometry:
    """Grid and block of a launch, in blocks and threads."""

    grid: Dims
    block: Dims
    shared_bytes: int

    @property
    def n_blocks(self) -> int:
        return math.prod(self.grid)

    @property
    def n_threads(self) -> int:
        return math.prod(self.block)

    def check(self, program: Program) -> None:
        """Refuse what a card would refuse."""
        static = sum(array.n_bytes for array in program.host.shared)
        if min(self.grid) < 1 or min(self.block) < 1 or self.n_threads > MAX_THREADS:
            raise EmulatorError(
                f"{program.name}: grid {self.grid}, block {self.block}: expected sizes of at least "
                f"1 and at most {MAX_THREADS} threads a block"
            )
        if static + self.shared_bytes > MAX_SHARED_BYTES:
            raise EmulatorError(
                f"{program.name}: {static} + {self.shared_bytes} bytes of shared memory, more "
                f"than the {MAX_SHARED_BYTES} that a block may have"
            )


def dims(size: int | Sequence[int]) -> Dims:
    """Three sizes from one to three, as a launch on a card takes them."""
    sizes = (size,) if isinstance(size, int | np.integer) else tuple(size)
    if not 1 <= len(sizes) <= 3:
        raise EmulatorError(f"grid or block: expected 1 to 3 sizes, got {size!r}")
    x, y, z = (*map(int, sizes), 1, 1)[:3]
    return x, y, z


def pack(args: Sequence[Any]) -> NDArray[np.uint64]:
    """Arguments as Numba's calling convention flattens them, 8 bytes each."""
    slots: list[Any] = []
    for arg in args:
        if isinstance(arg, np.ndarray):
            slots += [0, 0, arg.size, arg.itemsize, arg.ctypes.data, *arg.shape, *arg.strides]
        else:
            raw = np.asarray(arg).tobytes().ljust(8, b"\0")
            slots.append(int.from_bytes(raw, "little"))
    return np.array([slot & 0xFFFFFFFFFFFFFFFF for slot in slots], np.uint64)


@dataclass(frozen=True)
class Job:
    """All that is known of one launch."""

    program: Program
    geometry: Geometry
    args: NDArray[np.uint64]
    scene: Scene
    settings: Settings
    concurrent: bool  # all blocks live at once
    wait_s: float  # while blocks only poll, time for the host to write what they poll
    is_broken_off: threading.Event = field(default_factory=threading.Event)


def run(job: Job) -> Counts | None:
    """Run every block of the grid; raise what the first faulty one did."""
    queue = _queue(job.geometry.grid, job.settings.order, job.settings.seed)
    n_cores = 1 if job.concurrent else _n_cores(job)
    pools = [_pool(job, queue[core::n_cores], core) for core in range(n_cores)]
    if n_cores == 1:
        _finish(pools[0], job)
    else:
        _finish_all(pools, job)
    for pool in pools:
        job.program.spare_pools.setdefault(pool.key, []).append(pool)
    if not job.settings.count:
        return None
    table = np.sum([pool.counts for pool in pools], axis=0)
    return counts_of(table, job.program.code.sites)


@lru_cache(maxsize=64)
def _queue(grid: Dims, order: str, seed: int) -> NDArray[np.int32]:
    """Coordinates of the blocks, in the order in which they begin."""
    linear = np.arange(math.prod(grid))
    if order == "descending":
        linear = linear[::-1]
    elif order == "random":
        linear = np.random.default_rng(seed).permutation(linear)
    x, y, _ = grid
    coordinates = np.stack((linear % x, linear // x % y, linear // (x * y)), axis=1)
    return coordinates.astype(np.int32)


def _n_cores(job: Job) -> int:
    """Atomics stay on one core unless told otherwise: sums would depend on the cores' timing."""
    n_threads = job.settings.n_threads
    if n_threads is None:
        small = job.geometry.n_blocks * job.geometry.n_threads < MIN_THREADS_TO_SPREAD
        n_threads = 1 if small or job.program.code.atomics else len(os.sched_getaffinity(0))
    return max(1, min(n_threads, job.geometry.n_blocks))


def _pool(job: Job, queue: NDArray[np.int32], core: int) -> Pool:
    """A pool of the right size, used before or new, with this queue."""
    settings, geometry = job.settings, job.geometry
    at_once = RANDOM_PLACES if settings.order == "random" else 1
    n_places = len(queue) if job.concurrent else min(at_once, len(queue))
    key = (geometry.block, geometry.shared_bytes, n_places)
    spare = job.program.spare_pools.get(key, [])
    pool = spare.pop() if spare else Pool(job.program, key, n_places)
    pool.begin(queue, geometry.grid, ORDERS[settings.order], settings.seed + core)
    pool.prepare(job.args, job.scene.table)
    if settings.count:
        pool.count()
    elif settings.interleave:
        pool.jitter()
    return pool


@cache
def _executor(n_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n_threads, thread_name_prefix="emulator")


def _finish_all(pools: list[Pool], job: Job) -> None:
    """Each pool on a core of its own. The memory that they use is the caller's: where Ctrl-C ends
    the launch, they stop first."""
    running = [_executor(len(pools)).submit(_finish, pool, job) for pool in pools]
    interruption: KeyboardInterrupt | None = None
    while True:
        try:
            wait(running)
            break
        except KeyboardInterrupt as error:
            interruption = error
            job.is_broken_off.set()
    if interruption is not None:
        raise interruption
    for future in running:
        future.result()


def _finish(pool: Pool, job: Job) -> None:
    """Run a pool to its end, within the time allowed."""
    began = idle_since = time.monotonic()
    limit_s = job.settings.time_limit_s
    while (status := pool.run(MAX_IDLE_ROUNDS)) != records.FINISHED:
        if status in (records.FAULTED, records.STUCK):
            job.is_broken_off.set()  # the other cores need not go on
            raise report(pool, job.scene)
        if job.is_broken_off.is_set():
            return
        now = time.monotonic()
        if limit_s is not None and now - began > limit_s:
            raise DeadlockError(f"{job.scene.kernel}: not done after {limit_s} s")
        if status == records.PROGRESS:
            idle_since = now
        elif now - idle_since >= job.wait_s:
            raise DeadlockError(job.scene.deadlock(pool))
        else:
            time.sleep(1e-4)
