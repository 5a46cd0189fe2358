"""A pool: memory and records of the blocks that live at once on one core."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from m40llm.device.emulator import counters, records, scheduler
from m40llm.device.emulator.checks import check_address
from m40llm.device.emulator.host_ir import SHARED_GUARD
from m40llm.device.emulator.program import Program
from m40llm.device.emulator.records import BLOCK, THREAD

Key = tuple[tuple[int, int, int], int, int]
_ALIGN = 128  # of frames and of shared memory


class Pool:
    """Places for a few blocks; used again by later launches of the same shape."""

    def __init__(self, program: Program, key: Key, n_places: int) -> None:
        self.key = key
        self.program = program
        self.block_dims, self.dynamic_bytes, _ = key
        self.n_threads = int(np.prod(self.block_dims))
        self.state = np.zeros(scheduler.POOL_SIZE, np.int64)
        self.blocks = np.zeros(n_places, BLOCK)
        self.threads = np.zeros(n_places * self.n_threads, THREAD)
        self._lay_out_shared()
        self._lay_out_threads()

    def _lay_out_shared(self) -> None:
        host, blocks = self.program.host, self.blocks
        n_bytes = host.static_bytes + self.dynamic_bytes
        stride = -(-(n_bytes + SHARED_GUARD) // _ALIGN) * _ALIGN
        self.shared, base = _aligned(stride * blocks.size)
        self.shadow, shadow_base = _aligned(stride * blocks.size)
        places = np.arange(blocks.size, dtype=np.uint64) * np.uint64(stride)
        blocks["shared"] = np.uint64(base) + places
        blocks["shared_shadow"] = np.uint64(shadow_base) + places
        blocks["shared_bytes"] = n_bytes
        blocks["dynamic_bytes"] = self.dynamic_bytes
        static = [array for array in host.shared if array.n_bytes]
        ends = [array.offset + array.n_bytes for array in static]
        begins = [*(array.offset for array in static[1:]), host.static_bytes]
        self.guards = np.array(list(zip(ends, begins, strict=False)), np.int64).reshape(-1, 2)

    def _lay_out_threads(self) -> None:
        threads, n = self.threads, self.n_threads
        frame_bytes = -(-self.program.frame_bytes // _ALIGN) * _ALIGN
        self.frames, base = _aligned(frame_bytes * threads.size)
        index = np.arange(threads.size, dtype=np.uint64)
        threads["frame"] = np.uint64(base) + index * np.uint64(frame_bytes)
        threads["address"] = np.uint64(threads.ctypes.data) + index * np.uint64(THREAD.itemsize)
        block_index = index // np.uint64(n) * np.uint64(BLOCK.itemsize)
        threads["block"] = np.uint64(self.blocks.ctypes.data) + block_index
        x, y, _ = self.block_dims
        linear = np.arange(threads.size) % n
        threads["tid"] = np.stack((linear % x, linear // x % y, linear // (x * y)), axis=1)
        threads["lane"] = linear % 32
        self.blocks["ntid"] = self.block_dims
        self.blocks["frame_bytes"] = frame_bytes
        self.blocks["start"] = self.program.code.address
        self.blocks["check"] = check_address()

    def begin(
        self, queue: NDArray[np.int32], grid: tuple[int, int, int], order: int, seed: int
    ) -> None:
        """Take a queue of blocks to run; no place has begun."""
        self.queue = np.ascontiguousarray(queue)
        self.state[:] = 0
        self.state[scheduler.ORDER] = order
        self.state[scheduler.SEED] = seed
        self.state[scheduler.N_THREADS] = self.n_threads
        self.blocks["nctaid"] = grid
        self.blocks["status"] = records.FINISHED
        self.blocks["pause"] = records.READY

    def jitter(self) -> None:
        """Draw which lanes of a warp go on, too."""
        self.state[scheduler.JITTER] = 1

    def count(self) -> None:
        """Count accesses, from none."""
        n_sites = len(self.program.code.sites)
        self.counts = np.zeros((n_sites, counters.N_KINDS, counters.N_COLUMNS), np.int64)
        self.visits = np.zeros((self.threads.size, n_sites), np.int64)
        self.blocks["counts"] = self.counts.ctypes.data
        self.blocks["pause"] = records.ACCESS
        row_bytes = np.uint64(8 * n_sites)
        rows = np.arange(self.threads.size, dtype=np.uint64) * row_bytes
        self.threads["visits"] = np.uint64(self.visits.ctypes.data) + rows

    def prepare(self, args: NDArray[np.uint64], table: NDArray[Any]) -> None:
        """Point the blocks at the launch's arguments and at the table of live arrays."""
        self.args, self.table = args, table  # kept alive
        self.blocks["args"] = args.ctypes.data
        self.blocks["regions"] = table.ctypes.data
        self.blocks["n_regions"] = table.size
        self.blocks["region"] = 0

    def run(self, max_idle: int) -> int:
        """Let the scheduler work: the status it came to, as scheduler.run_pool says."""
        status = scheduler.run_pool(
            self.state, self.queue, self.blocks, self.threads, self.guards, max_idle
        )
        return int(status)

    def faulty_thread(self) -> Any:
        """The THREAD record of the thread that faulted."""
        place = int(self.state[scheduler.FAULTY])
        mine = self.threads[place * self.n_threads : (place + 1) * self.n_threads]
        faulted = np.flatnonzero(mine["state"] == records.FAULT)
        return mine[faulted[0] if faulted.size else 0]

    def faulty_block(self) -> Any:
        """The BLOCK record of that thread."""
        return self.blocks[int(self.state[scheduler.FAULTY])]


def _aligned(n_bytes: int) -> tuple[NDArray[np.uint8], int]:
    """That many bytes of memory, aligned, and their address."""
    buffer = np.zeros(n_bytes + _ALIGN, np.uint8)
    return buffer, buffer.ctypes.data + -buffer.ctypes.data % _ALIGN
