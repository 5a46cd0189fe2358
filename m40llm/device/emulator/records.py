"""What the compiled coroutines, the scheduler and Python share: record layouts and state codes.

The generated LLVM IR reads and writes these records by byte offset (`offset`), the scheduler and
the access check (Numba) by field name, Python through NumPy. One definition serves all three.
"""

from typing import Any, Final

import numpy as np

# ------------------------------------------------------------- what a thread is waiting for
NEW: Final = 0  # not started
READY: Final = 1
BARRIER: Final = 2  # at a block-wide barrier
WARP: Final = 3  # at a shuffle, vote or warp barrier
YIELD: Final = 4  # before a volatile load or an atomic: lets the others run first
ACCESS: Final = 5  # before a load or store that is being counted
DONE: Final = 6
FAULT: Final = 7

# ------------------------------------------------------------- operations at a suspend point
SHFL_IDX: Final = 0  # the four shuffle modes are numbered as in PTX (and NVVM)
SHFL_UP: Final = 1
SHFL_DOWN: Final = 2
SHFL_XOR: Final = 3
VOTE_ALL: Final = 4  # the four votes likewise, from here
VOTE_ANY: Final = 5
VOTE_EQ: Final = 6
VOTE_BALLOT: Final = 7
WARP_SYNC: Final = 8
ACTIVE_MASK: Final = 9

BAR_SYNC: Final = 0
BAR_POPC: Final = 1
BAR_AND: Final = 2
BAR_OR: Final = 3

# ------------------------------------------------------------- kinds of access (bits of `flags`)
SIZE_MASK: Final = 0xFF  # bytes moved
ALIGN_SHIFT: Final = 8  # log2 of the alignment that the instruction promises
WRITES: Final = 1 << 16
READS: Final = 1 << 17
ATOMIC: Final = 1 << 18
INVARIANT: Final = 1 << 19  # through the read-only cache (ld.global.nc)
GLOBAL_ONLY: Final = 1 << 20  # by an instruction for global memory (ld.global), not a generic one
SHARED_ONLY: Final = 1 << 21

# ------------------------------------------------------------- faults
OUT_OF_BOUNDS: Final = 1
UNINITIALISED: Final = 2
MISALIGNED: Final = 3
READ_ONLY: Final = 4
BARRIER_DIVERGENCE: Final = 5
WARP_DIVERGENCE: Final = 6
INACTIVE_LANE: Final = 7
NOT_IN_MASK: Final = 8
RAISED: Final = 9  # the kernel returned an error status
STALE_READ: Final = 10  # a read-only-cache load of what this launch has written
OTHER_SPACE: Final = 11  # an instruction for global memory met shared memory, or the reverse

# ------------------------------------------------------------- shadow bytes, one a byte of memory
UNWRITTEN: Final = 0
WRITTEN: Final = 1
GUARD: Final = 2  # between two shared arrays: belongs to nobody

# ------------------------------------------------------------- what a sweep over a block did
STUCK: Final = 0
IDLE: Final = 1  # only polls that saw nothing new
PROGRESS: Final = 2
FINISHED: Final = 3
FAULTED: Final = 4

THREAD = np.dtype(
    [
        ("frame", np.uint64),  # address of the coroutine's frame
        ("block", np.uint64),  # address of the thread's BLOCK record
        ("address", np.uint64),  # of this record
        ("code", np.uint64),  # address of the kernel's first part
        ("tid", np.int32, 3),
        ("lane", np.int32),
        ("state", np.int32),
        ("site", np.int32),  # which suspend point or access, an index into the kernel's sites
        ("op", np.int32),
        ("mask", np.uint32),
        ("value", np.uint32),
        ("operand", np.uint32),  # lane or distance of a shuffle
        ("clamp", np.uint32),
        ("idle", np.int32),  # polls in a row that saw the same value at the same place
        ("result", np.uint32),  # with `flag` read as one 64-bit word by the coroutine
        ("flag", np.uint32),
        ("poll_address", np.uint64),
        ("poll_value", np.uint64),
        ("fault_address", np.uint64),
        ("fault", np.int32),
        ("access", np.int32),  # flags of the access waited at or faulted on
        ("frame_bytes", np.int64),  # written by the coroutine when it starts
        ("visits", np.uint64),  # address of int64[n_sites]: accesses made there, if counted
    ],
    align=True,
)

BLOCK = np.dtype(
    [
        ("args", np.uint64),  # address of the packed arguments, 8 bytes each
        ("check", np.uint64),  # address of the access check (checks.py)
        ("start", np.uint64),  # address of the kernel's first part
        ("shared", np.uint64),
        ("shared_shadow", np.uint64),
        ("shared_bytes", np.int64),
        ("counts", np.uint64),  # address of the table in counters.py
        ("regions", np.uint64),  # address of REGION records, sorted by `begin`
        ("n_regions", np.int64),
        ("region", np.int64),  # the one that the last access hit
        ("frame_bytes", np.int64),
        ("ctaid", np.int32, 3),
        ("ntid", np.int32, 3),
        ("nctaid", np.int32, 3),
        ("dynamic_bytes", np.int32),
        ("pause", np.int32),  # the state in which a thread stops before an access: READY, ACCESS
        ("status", np.int32),
    ],
    align=True,
)

REGION = np.dtype(
    [
        ("begin", np.uint64),
        ("end", np.uint64),
        ("shadow", np.uint64),  # address of the shadow bytes; 0: everything counts as written
        ("read_only", np.int32),
        ("written", np.int32),  # by the launch in progress
    ],
    align=True,
)


def offset(record: np.dtype[Any], field: str, index: int = 0) -> int:
    """Byte offset of a field (of element `index` of an array field) in a record."""
    assert record.fields is not None
    kind, start = record.fields[field][:2]
    return int(start) + index * (kind.base.itemsize if kind.subdtype else kind.itemsize)
