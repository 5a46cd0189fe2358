# mypy: disable-error-code="no-any-return, assignment, return-value"
# (compiled code: Numba sees the true types of records and integers, mypy does not)
"""Counts what a profiler would: requests, 32-byte sectors and bank conflicts, line by line.

A counted kernel suspends before every load and store; when no lane of a warp can go on without
one, the lanes that wait at the same instruction make one request together. Lanes that are behind
(that have been at their instruction less often) go first: so a warp that diverged comes together
again much as it does on a card, though not always at the same instruction.
"""

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from m40llm.device.emulator.compiled import compiled
from m40llm.device.emulator.pointers import add_int64, block_at, peek_int64
from m40llm.device.emulator.records import ACCESS, READS, READY, SIZE_MASK
from m40llm.device.emulator.source_lines import Location

# The table: int64[n_sites, 4 kinds, 4 columns], and int64[n_threads, n_sites] of visits.
GLOBAL_LOAD: Final = 0
GLOBAL_STORE: Final = 1
SHARED_LOAD: Final = 2
SHARED_STORE: Final = 3
N_KINDS: Final = 4
REQUESTS: Final = 0
PIECES: Final = 1  # sectors of global memory, wavefronts of shared memory
BYTES: Final = 2
LANES: Final = 3
N_COLUMNS: Final = 4

SECTOR_BYTES: Final = 32
WAVEFRONT_BYTES: Final = 128  # 32 banks of 4 bytes

Records = Any


@dataclass(frozen=True)
class Traffic:
    """What one kind of access moved. `pieces`: 32-byte sectors (global), wavefronts (shared)."""

    requests: int = 0
    pieces: int = 0
    bytes: int = 0
    lanes: int = 0

    @property
    def least_pieces(self) -> int:
        """Wavefronts that the same bytes need without bank conflicts, were every lane active."""
        return -(-self.bytes // WAVEFRONT_BYTES)

    @property
    def lanes_a_request(self) -> float:
        """32 without divergence."""
        return self.lanes / self.requests if self.requests else 0.0

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(
            self.requests + other.requests,
            self.pieces + other.pieces,
            self.bytes + other.bytes,
            self.lanes + other.lanes,
        )


@dataclass(frozen=True)
class Counts:
    """Loads and stores of one launch (atomics, volatile loads and local arrays left out)."""

    global_loads: Traffic = Traffic()
    global_stores: Traffic = Traffic()
    shared_loads: Traffic = Traffic()
    shared_stores: Traffic = Traffic()
    by_line: dict[Location, "Counts"] = field(default_factory=dict)

    @property
    def bank_conflicts(self) -> int:
        """Wavefronts of shared memory beyond one a full warp's 128 bytes."""
        shared = (self.shared_loads, self.shared_stores)
        return sum(max(traffic.pieces - traffic.least_pieces, 0) for traffic in shared)


def counts_of(table: NDArray[np.int64], sites: tuple[Location, ...]) -> Counts:
    """The table as objects: totals, and the same for each line that moved anything."""
    by_line = {
        location: _counts(rows, {})
        for location, rows in zip(sites, table, strict=False)
        if rows.any()
    }
    return _counts(table.sum(axis=0), by_line)


def _counts(rows: NDArray[np.int64], by_line: dict[Location, Counts]) -> Counts:
    loads, stores, shared_loads, shared_stores = (Traffic(*map(int, row)) for row in rows)
    return Counts(loads, stores, shared_loads, shared_stores, by_line)


@compiled
def serve_accesses(threads: Records, first: int, n_lanes: int) -> bool:
    """Let the lanes that wait at one instruction make their access; is there one?"""
    leader, least = -1, 0
    for lane in range(n_lanes):
        thread = threads[first + lane]
        if thread.state == ACCESS:
            visits = peek_int64(thread.visits + np.uint64(8 * thread.site))
            key = (visits << 32) + thread.site
            if leader < 0 or key < least:
                leader, least = lane, key
    if leader < 0:
        return False
    site, flags = threads[first + leader].site, threads[first + leader].access
    addresses, n_active = np.empty(32, np.uint64), 0
    for lane in range(n_lanes):
        thread = threads[first + lane]
        if thread.state == ACCESS and thread.site == site and thread.access == flags:
            addresses[n_active] = thread.fault_address
            n_active += 1
            thread.state = READY
            add_int64(thread.visits + np.uint64(8 * site), 1)
    _count(block_at(threads[first].block), addresses[:n_active], site, flags)
    return True


@compiled
def _count(block: Records, addresses: Any, site: int, flags: int) -> None:
    n_bytes = flags & SIZE_MASK
    shared_end = block.shared + np.uint64(block.shared_bytes)
    is_shared = block.shared <= addresses[0] < shared_end
    kind = (SHARED_LOAD if is_shared else GLOBAL_LOAD) + (0 if flags & READS else 1)
    if is_shared:
        pieces = _wavefronts(addresses, n_bytes)
    else:
        pieces = _distinct(addresses // np.uint64(SECTOR_BYTES))
    row = block.counts + np.uint64(8 * N_COLUMNS * (N_KINDS * site + kind))
    add_int64(row + np.uint64(8 * REQUESTS), 1)
    add_int64(row + np.uint64(8 * PIECES), pieces)
    add_int64(row + np.uint64(8 * BYTES), n_bytes * addresses.size)
    add_int64(row + np.uint64(8 * LANES), addresses.size)


@compiled
def _distinct(values: Any) -> int:
    n = 0
    for i in range(values.size):
        new = 1
        for j in range(i):
            if values[j] == values[i]:
                new = 0
        n += new
    return n


@compiled
def _wavefronts(addresses: Any, n_bytes: int) -> int:
    """8 and 16 bytes a lane go by half and quarter warps; words of one bank one after another."""
    words = max(n_bytes // 4, 1)
    group = 32 // words
    total = 0
    for begin in range(0, addresses.size, group):
        part = addresses[begin : begin + group] // np.uint64(4)
        per_bank = np.zeros(32, np.int64)
        for i in range(part.size):
            new = 1
            for j in range(i):
                if part[j] == part[i]:
                    new = 0
            for word in range(words):
                per_bank[np.int64((part[i] + np.uint64(word)) % np.uint64(32))] += new
        total += per_bank.max()
    return total
