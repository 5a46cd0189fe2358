# mypy: disable-error-code="no-any-return, assignment, return-value, arg-type"
# (compiled code: Numba sees the true types of records and integers, mypy does not)
"""The access check: every load and store of a checked kernel calls it before it touches memory.

It runs as compiled code, called by the coroutine through the address in its BLOCK record.
"""

from functools import cache
from typing import Any

import numpy as np
from numba import types

from m40llm.device.emulator.compiled import callback_address, compiled
from m40llm.device.emulator.pointers import (
    block_at,
    fill_bytes,
    peek_uint8,
    peek_uint64,
    region_at,
    thread_at,
)
from m40llm.device.emulator.records import (
    ALIGN_SHIFT,
    GLOBAL_ONLY,
    INVARIANT,
    MISALIGNED,
    OTHER_SPACE,
    OUT_OF_BOUNDS,
    READ_ONLY,
    READS,
    REGION,
    SHARED_ONLY,
    SIZE_MASK,
    STALE_READ,
    UNINITIALISED,
    WRITES,
    WRITTEN,
)

Record = Any  # a THREAD, BLOCK or REGION record; Numba sees the true type
_ALL_WRITTEN = np.uint64(0x0101010101010101)  # eight shadow bytes
_REGION_BYTES = np.uint64(REGION.itemsize)


@cache
def check_address() -> int:
    """Address of the compiled check: int32 (ptr thread, ptr accessed, i32 flags, i32 site)."""
    signature = types.int32(types.uint64, types.uint64, types.int32, types.int32)
    return callback_address(check, signature)


def check(thread_address: int, address: int, flags: int, site: int) -> int:
    """0 if the access is sound; otherwise the fault, which is noted in the thread's record."""
    thread = thread_at(thread_address)
    fault = _fault_of(block_at(thread.block), thread, address, flags)
    if fault != 0:
        thread.fault = fault
        thread.fault_address = address
        thread.access = flags
        thread.site = site
    return fault


@compiled
def _fault_of(block: Record, thread: Record, address: int, flags: int) -> int:
    n_bytes = np.uint64(flags & SIZE_MASK)
    alignment = np.uint64(1) << np.uint64(flags >> ALIGN_SHIFT & 0xFF)
    if address & (alignment - np.uint64(1)):
        return MISALIGNED
    end = address + n_bytes
    shared_end = block.shared + np.uint64(block.shared_bytes)
    if block.shared <= address and end <= shared_end:
        if flags & GLOBAL_ONLY:
            return OTHER_SPACE
        return _shadow_fault(block.shared_shadow + (address - block.shared), n_bytes, flags)
    frame_end = thread.frame + np.uint64(block.frame_bytes)
    if thread.frame <= address and end <= frame_end:  # a local array
        return OTHER_SPACE if flags & (GLOBAL_ONLY | SHARED_ONLY) else 0
    region = region_at(block.regions + np.uint64(block.region) * _REGION_BYTES)
    if address < region.begin or end > region.end:
        found = _find_region(block, address)
        if found < 0:
            return OUT_OF_BOUNDS
        block.region = found
        region = region_at(block.regions + np.uint64(found) * _REGION_BYTES)
        if end > region.end:
            return OUT_OF_BOUNDS
    if flags & SHARED_ONLY:
        return OTHER_SPACE
    if flags & WRITES:
        if region.read_only != 0:
            return READ_ONLY
        region.written = 1
    elif flags & INVARIANT and region.written != 0:
        return STALE_READ
    if region.shadow == 0:
        return 0
    return _shadow_fault(region.shadow + (address - region.begin), n_bytes, flags)


@compiled
def _shadow_fault(shadow: int, n_bytes: int, flags: int) -> int:
    """Compare the shadow bytes of an access with what it does, and note what it writes."""
    written, guarded = _state(shadow, n_bytes)
    if guarded:
        return OUT_OF_BOUNDS
    if flags & READS and not written:
        return UNINITIALISED
    if flags & WRITES and not written:
        fill_bytes(shadow, WRITTEN, np.int64(n_bytes))
    return 0


@compiled
def _state(shadow: int, n_bytes: int) -> tuple[bool, bool]:
    """Whether all the bytes have been written, and whether one belongs to no array."""
    bits, common = np.uint64(0), np.uint64(WRITTEN)
    at = np.uint64(0)
    while at + np.uint64(8) <= n_bytes:
        eight = peek_uint64(shadow + at)
        bits |= eight
        common &= np.uint64(eight == _ALL_WRITTEN)
        at += np.uint64(8)
    while at < n_bytes:
        one = np.uint64(peek_uint8(shadow + at))
        bits |= one
        common &= one
        at += np.uint64(1)
    return common != 0, (bits & np.uint64(0x0202020202020202)) != 0


@compiled
def _find_region(block: Record, address: int) -> int:
    """The last region that begins at or below the address, if the address lies in it; else -1."""
    low, high = 0, block.n_regions
    while low < high:
        middle = (low + high) // 2
        if region_at(block.regions + np.uint64(middle) * _REGION_BYTES).begin <= address:
            low = middle + 1
        else:
            high = middle
    if low == 0 or address >= region_at(block.regions + np.uint64(low - 1) * _REGION_BYTES).end:
        return -1
    return low - 1
