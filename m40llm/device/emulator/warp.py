# mypy: disable-error-code="no-any-return, assignment, return-value"
# (compiled code: Numba sees the true types of records and integers, mypy does not)
"""What a warp does together: shuffles, votes and warp barriers, once all lanes named are there."""

from typing import Any

import numpy as np

from m40llm.device.emulator.compiled import compiled
from m40llm.device.emulator.records import (
    ACTIVE_MASK,
    DONE,
    FAULT,
    INACTIVE_LANE,
    NOT_IN_MASK,
    READY,
    SHFL_DOWN,
    SHFL_IDX,
    SHFL_UP,
    SHFL_XOR,
    VOTE_ALL,
    VOTE_ANY,
    VOTE_BALLOT,
    VOTE_EQ,
    WARP,
)

Records = Any  # an array of THREAD, BLOCK or REGION records; Numba sees the true type


@compiled
def exchange(threads: Records, first: int, n_lanes: int) -> bool:
    """Serve every warp operation of the warp whose lanes have all arrived; is any lane ready?

    Called when no lane of the warp is ready to run. Lanes that have returned are not waited for.
    """
    served = False
    for lane in range(n_lanes):
        if threads[first + lane].state == WARP:
            group = _arrived(threads, first, n_lanes, lane)
            if group != 0:
                _serve(threads, first, n_lanes, lane, group)
                served = True
    return served


@compiled
def _arrived(threads: Records, first: int, n_lanes: int, lane: int) -> int:
    """The lanes that wait at the same operation, as bits; 0 if one that the mask names does not."""
    leader = threads[first + lane]
    site, op, mask = leader.site, leader.op, leader.mask
    group = 0
    for other in range(n_lanes):
        thread = threads[first + other]
        bit = 1 << other
        if mask & bit == 0 and other != lane:
            continue
        same = thread.state == WARP and thread.site == site and thread.op == op
        if same and thread.mask == mask:
            group |= bit
        elif thread.state != DONE and op != ACTIVE_MASK:
            return 0
    return group


@compiled
def _serve(threads: Records, first: int, n_lanes: int, leader: int, group: int) -> None:
    """Give each lane of the group its result and make it ready."""
    op = threads[first + leader].op
    result, flag = np.uint32(group), np.uint32(1)
    if VOTE_ALL <= op <= VOTE_BALLOT:
        ballot = 0
        for lane in range(n_lanes):
            if group >> lane & 1 and threads[first + lane].value != 0:
                ballot |= 1 << lane
        result = np.uint32(ballot)
        flag = np.uint32(
            (op == VOTE_ALL and ballot == group)
            or (op == VOTE_ANY and ballot != 0)
            or (op == VOTE_EQ and (ballot == group or ballot == 0))
        )
    for lane in range(n_lanes):
        thread = threads[first + lane]
        if group >> lane & 1:
            thread.state = READY
            thread.result = result
            thread.flag = flag
            if op != ACTIVE_MASK and thread.mask >> np.uint32(lane) & 1 == 0:
                thread.state = FAULT
                thread.fault = NOT_IN_MASK
            elif op <= SHFL_XOR:
                _shuffle(threads, first, lane, group)


@compiled
def _shuffle(threads: Records, first: int, lane: int, group: int) -> None:
    """PTX's shfl.sync: the clamp operand holds the segment's mask and the last lane."""
    thread = threads[first + lane]
    op, distance = thread.op, np.int64(thread.operand) & 31
    segment = np.int64(thread.clamp) >> 8 & 31
    clamp = np.int64(thread.clamp) & 31
    low = lane & segment
    high = low | (clamp & ~segment)
    source = lane ^ distance
    if op == SHFL_UP:
        source = lane - distance
    elif op == SHFL_DOWN:
        source = lane + distance
    elif op == SHFL_IDX:
        source = low | (distance & ~segment)
    inside = source >= high if op == SHFL_UP else source <= high
    if not inside:
        source = lane
    if group >> source & 1 == 0:
        thread.state = FAULT
        thread.fault = INACTIVE_LANE
        thread.fault_address = source
        return
    thread.result = threads[first + source].value
    thread.flag = np.uint32(inside)
