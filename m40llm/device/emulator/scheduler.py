# mypy: disable-error-code="no-any-return, assignment, return-value"
# (compiled code: Numba sees the true types of records and integers, mypy does not)
"""The compiled scheduler: which thread runs next, until every block of the launch is done.

A pool is a few blocks that live at once and the queue of those to come. One core runs one pool;
a kernel whose blocks wait for each other has one pool with a place for every block.
"""

from typing import Any, Final

import numpy as np

from m40llm.device.emulator.compiled import compiled
from m40llm.device.emulator.counters import serve_accesses
from m40llm.device.emulator.pointers import fill_bytes, resume, start
from m40llm.device.emulator.records import (
    BAR_AND,
    BAR_OR,
    BAR_POPC,
    BARRIER,
    BARRIER_DIVERGENCE,
    DONE,
    FAULT,
    FAULTED,
    FINISHED,
    GUARD,
    IDLE,
    NEW,
    PROGRESS,
    READY,
    STUCK,
    WARP,
    WARP_DIVERGENCE,
    WRITES,
    YIELD,
)
from m40llm.device.emulator.warp import exchange

Records = Any  # an array of THREAD, BLOCK or REGION records; Numba sees the true type
Array = Any

ASCENDING: Final = 0
DESCENDING: Final = 1
RANDOM: Final = 2

# A pool's own state, an int64 array.
NEXT: Final = 0  # place in the queue of the next block to begin
IDLE_ROUNDS: Final = 1
SEED: Final = 2
ORDER: Final = 3
FAULTY: Final = 4  # index of the place whose block faulted or is stuck
N_THREADS: Final = 5  # of a block
JITTER: Final = 6  # draw which lanes run, too
ROUNDS: Final = 7
POOL_SIZE: Final = 8

ROUNDS_A_CALL: Final = 1 << 16  # then Python may look at the clock


@compiled
def run_pool(
    pool: Array, queue: Array, blocks: Records, threads: Records, guards: Array, max_idle: int
) -> int:
    """Run blocks until all are FINISHED, one is FAULTED or STUCK, or all only poll (IDLE).

    PROGRESS means that there is more to run: call again.

    pool     int64[POOL_SIZE]
    queue    int32[n, 3]      coordinates of the blocks to run
    blocks   BLOCK[places]    `status` PROGRESS where a block lives, FINISHED where none does
    threads  THREAD[places * n_threads]
    guards   int64[n, 2]      ranges of shared memory that belong to no array
    """
    n_threads = pool[N_THREADS]
    while True:
        alive, best = 0, STUCK
        begin, step = _turn(pool, blocks.size)
        for i in range(blocks.size):
            place = (begin + i * step) % blocks.size
            block = blocks[place]
            mine = threads[place * n_threads : (place + 1) * n_threads]
            if block.status == FINISHED:
                if pool[NEXT] == queue.shape[0]:
                    continue
                _begin(pool, queue, block, mine, guards)
            status = _sweep(pool, mine)
            block.status = status
            alive += 1
            best = max(best, min(status, PROGRESS))
            if status in (FAULTED, STUCK):
                pool[FAULTY] = place
                return status
        if alive == 0:
            return FINISHED
        pool[ROUNDS] += 1
        if pool[ROUNDS] % ROUNDS_A_CALL == 0:
            return PROGRESS
        pool[IDLE_ROUNDS] = pool[IDLE_ROUNDS] + 1 if best == IDLE else 0
        if pool[IDLE_ROUNDS] > max_idle:
            return IDLE


@compiled
def _draw(pool: Array) -> int:
    """The next 31 random bits (splitmix64)."""
    pool[SEED] += np.int64(-7046029254386353131)
    z = np.uint64(pool[SEED])
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.int64(z >> np.uint64(33))


@compiled
def _turn(pool: Array, n: int) -> tuple[int, int]:
    """Where to begin a round over n, and in which direction to go."""
    if pool[ORDER] == ASCENDING:
        return 0, 1
    if pool[ORDER] == DESCENDING:
        return n - 1, n - 1
    drawn = _draw(pool)
    return (drawn >> 1) % n, 1 if drawn & 1 else n - 1


@compiled
def _begin(pool: Array, queue: Array, block: Records, threads: Records, guards: Array) -> None:
    """Put the next block of the queue in a free place: nothing written in its shared memory."""
    for axis in range(3):
        block.ctaid[axis] = queue[pool[NEXT], axis]
    pool[NEXT] += 1
    if block.shared_shadow != 0:
        fill_bytes(block.shared_shadow, 0, block.shared_bytes)
        for i in range(guards.shape[0]):
            n_bytes = guards[i, 1] - guards[i, 0]
            fill_bytes(block.shared_shadow + np.uint64(guards[i, 0]), GUARD, n_bytes)
    for t in range(threads.size):
        threads[t].state = NEW
        threads[t].idle = 0
        threads[t].poll_address = 0
        threads[t].code = block.start


@compiled
def _sweep(pool: Array, threads: Records) -> int:
    """Visit every warp of a block once; then see to its barrier if nobody could run."""
    n_warps = (threads.size + 31) // 32
    activity = STUCK
    begin, step = _turn(pool, n_warps)
    for i in range(n_warps):
        first = 32 * ((begin + i * step) % n_warps)
        activity = max(activity, _run_warp(pool, threads, first, min(32, threads.size - first)))
        if activity == FAULTED:
            return FAULTED
    if activity == STUCK:
        activity = _release(threads)
    return activity


@compiled
def _run_warp(pool: Array, threads: Records, first: int, n_lanes: int) -> int:
    """Run the lanes of a warp, and exchange between them, until none can go on.

    A drawn order may leave the warp sooner, and leave ready lanes out: then it is IDLE at least.
    """
    activity = STUCK
    while True:
        activity = max(activity, _run_lanes(pool, threads, first, n_lanes))
        if activity == FAULTED:
            return FAULTED
        ready = exchange(threads, first, n_lanes) or serve_accesses(threads, first, n_lanes)
        for lane in range(n_lanes):
            ready |= threads[first + lane].state <= READY
        if not ready or (pool[ORDER] == RANDOM and _draw(pool) & 3 == 0):
            break
    for lane in range(n_lanes):
        thread = threads[first + lane]
        if thread.state == FAULT:
            return FAULTED
        if thread.state == YIELD:  # it goes on when the others have had their turn
            thread.state = READY
    return max(activity, IDLE) if ready else activity


@compiled
def _run_lanes(pool: Array, threads: Records, first: int, n_lanes: int) -> int:
    """Resume every ready lane once."""
    activity = STUCK
    begin, step = 0, 1
    if pool[ORDER] == DESCENDING:
        begin, step = 31, 31
    elif pool[ORDER] == RANDOM:
        drawn = _draw(pool)
        begin, step = drawn & 31, (drawn >> 5 & 30) + 1
    skipped = _draw(pool) & _draw(pool) if pool[JITTER] else 0
    for i in range(32):
        lane = (begin + i * step) & 31
        if lane >= n_lanes or threads[first + lane].state > READY or skipped >> lane & 1:
            continue
        thread = threads[first + lane]
        if thread.state == NEW:
            thread.state = READY
            start(thread.code, thread.address)
        else:
            resume(thread.frame)
        if thread.state == FAULT:
            return FAULTED
        if thread.state == READY and thread.access & WRITES:
            thread.idle = 0
        waits = thread.state in (YIELD, READY) and thread.idle > 0
        activity = max(activity, IDLE if waits else PROGRESS)
    return activity


@compiled
def _release(threads: Records) -> int:
    """Let the threads pass the barrier if all that live are there; nobody else can run."""
    n_live, n_true, leader = 0, 0, -1
    for t in range(threads.size):
        thread = threads[t]
        if thread.state == DONE:
            continue
        if thread.state <= READY:
            return IDLE
        if thread.state == WARP:
            return _fault(thread, WARP_DIVERGENCE)
        if leader < 0:
            leader = t
        if thread.site != threads[leader].site or thread.op != threads[leader].op:
            return _fault(thread, BARRIER_DIVERGENCE)
        n_live += 1
        n_true += thread.value != 0
    if n_live == 0:
        return FINISHED
    op, result = threads[leader].op, 0
    if op == BAR_POPC:
        result = n_true
    elif op == BAR_AND:
        result = np.int64(n_true == n_live)
    elif op == BAR_OR:
        result = np.int64(n_true > 0)
    for t in range(threads.size):
        if threads[t].state == BARRIER:
            threads[t].state = READY
            threads[t].result = result
    return PROGRESS


@compiled
def _fault(thread: Records, kind: int) -> int:
    thread.state = FAULT
    thread.fault = kind
    return FAULTED


@compiled
def measure(code: Any, thread: Any) -> None:
    """Call a coroutine's first part once; with no frame, it notes what it needs and returns."""
    start(code, thread)
