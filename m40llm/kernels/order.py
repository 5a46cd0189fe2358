"""Logits in one total order, and what is found by it without a sort.

The key of (logit, id) is an int64 of 54 bits: the FP32 as an integer that grows with it, then the
id inverted. The largest key is the largest logit, of equal ones (0 and -0 are equal) that with the
smallest id; keys are never equal; NaN comes after -inf. 22 bits of id: up to 4,194,304 tokens.

select_over(key_at, weight_of) makes a device function: the key at which the weight of all keys from
the largest down first exceeds a target. Weights are integers, hence sums are exact and the
same in any order. It finds 11 bits at a time from a histogram in shared memory: 5 passes. Weight
1 gives the k largest, exp(logit - largest) the nucleus of top-p, the same tempered a draw.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any, Final

from numba import cuda, float32, int64, uint32

from m40llm.kernels.bits import float_as_uint, uint_as_float
from m40llm.kernels.reduce import FULL_MASK, WARP_SIZE

ID_BITS: Final = 22
MAX_VOCAB_SIZE: Final = 1 << ID_BITS
DIGIT_BITS: Final = 11
N_DIGITS: Final = 5
N_BINS: Final = 1 << DIGIT_BITS
ONE: Final = 1 << 40  # the weight of the largest logit; 4,194,304 of them stay below 2^63
_ID_MASK: Final = MAX_VOCAB_SIZE - 1
_BINS_PER_LANE: Final = N_BINS // WARP_SIZE
_MINUS_INFINITY: Final = float("-inf")


@cuda.jit(device=True)
def key_of(logit: Any, token_id: Any) -> Any:
    """(logit, id) -> int64"""
    if logit != logit:
        return int64(_ID_MASK) - int64(token_id)
    bits = float_as_uint(logit + float32(0.0))  # -0 + 0 = 0
    flipped = uint32(bits ^ uint32(0x80000000))
    if bits & uint32(0x80000000):
        flipped = uint32(bits ^ uint32(0xFFFFFFFF))
    return (int64(flipped) << ID_BITS) + (int64(_ID_MASK) - int64(token_id))


@cuda.jit(device=True)
def lowest_key_of(logit: Any) -> Any:
    """The smallest key of any token with this logit."""
    return key_of(logit, int64(_ID_MASK))


@cuda.jit(device=True)
def id_of(key: Any) -> Any:
    """The token of a key."""
    return int64(_ID_MASK) - (key & int64(_ID_MASK))


@cuda.jit(device=True)
def logit_of(key: Any) -> Any:
    """The logit of a key, -0 as 0, any NaN as one."""
    flipped = uint32(key >> ID_BITS)
    if flipped & uint32(0x80000000):
        return uint_as_float(uint32(flipped ^ uint32(0x80000000)))
    return uint_as_float(uint32(flipped ^ uint32(0xFFFFFFFF)))


@cuda.jit(device=True)
def key_in_row(row: Any, i: Any) -> Any:
    """Entry i of float32 logits."""
    return key_of(row[i], i)


@cuda.jit(device=True)
def key_in_list(keys: Any, i: Any) -> Any:
    """Entry i of int64 keys."""
    return keys[i]


@cuda.jit(device=True)
def count(key: Any, largest: Any, sharpness: Any) -> Any:
    """Weight 1."""
    return int64(1)


@cuda.jit(device=True)
def mass(key: Any, largest: Any, sharpness: Any) -> Any:
    """exp((logit - largest) * sharpness) in units of 1 / ONE; 0 for -inf and NaN."""
    logit = logit_of(key)
    if logit == largest:
        return int64(ONE)
    below = logit - largest
    if below > float32(_MINUS_INFINITY):
        return int64(math.exp(below * sharpness) * float32(ONE))
    return int64(0)


@cuda.jit(device=True)
def _find_bin(bins: Any, target: Any, found: Any) -> None:
    """found = (bin where the sum from the top bin down exceeds target, target less those above).

    One warp, 64 bins a lane, lane 0 the topmost. Bin -1 if all bins together do not exceed it.
    """
    lane = cuda.threadIdx.x
    top = int64(N_BINS - 1) - lane * _BINS_PER_LANE
    own = int64(0)
    for below in range(_BINS_PER_LANE):
        own += bins[top - below]
    until = own
    for step in range(5):
        distance = 1 << step
        other = cuda.shfl_up_sync(FULL_MASK, until, distance)
        if lane >= distance:
            until += other
    if lane == WARP_SIZE - 1 and until <= target:
        found[0] = int64(-1)
    rest = target - (until - own)
    if rest >= int64(0) and until > target:
        bin_ = top
        while rest >= bins[bin_]:
            rest -= bins[bin_]
            bin_ -= 1
        found[0] = bin_
        found[1] = rest


@cache
def select_over(key_at: Callable[..., Any], weight_of: Callable[..., Any]) -> Callable[..., Any]:
    """The device function `select` for one kind of source and weight."""

    @cuda.jit(device=True)
    def select(
        source: Any, n: Any, lowest: Any, largest: Any, sharpness: Any, target: Any,
        bins: Any, found: Any,
    ) -> Any:  # fmt: skip
        """The key, of those from `lowest` up, where the weight from the largest key down to it
        first exceeds `target`; `lowest` if all of them do not. The whole block calls it.

        bins  shared int64[N_BINS]; found  shared int64[2]; both free again afterwards
        """
        prefix, rest = int64(0), int64(target)
        for digit in range(N_DIGITS):
            shift = int64(DIGIT_BITS) * (N_DIGITS - 1 - digit)
            cuda.syncthreads()
            for bin_ in range(cuda.threadIdx.x, N_BINS, cuda.blockDim.x):
                bins[bin_] = int64(0)
            cuda.syncthreads()
            for i in range(cuda.threadIdx.x, n, cuda.blockDim.x):
                key = key_at(source, i)
                if key >= lowest and key >> (shift + DIGIT_BITS) == prefix:
                    weight = weight_of(key, largest, sharpness)
                    if weight > int64(0):
                        cuda.atomic.add(bins, (key >> shift) & int64(N_BINS - 1), weight)
            cuda.syncthreads()
            if cuda.threadIdx.x < WARP_SIZE:
                _find_bin(bins, rest, found)
            cuda.syncthreads()
            if found[0] < int64(0):
                return int64(lowest)
            prefix = (prefix << DIGIT_BITS) | found[0]
            rest = found[1]
        return prefix

    return select  # type: ignore[no-any-return]


_select_count_in_row: Final = select_over(key_in_row, count)
_select_count_in_list: Final = select_over(key_in_list, count)


@cuda.jit(device=True)
def gather(row: Any, n: Any, lowest: Any, kept: Any, n_kept: Any) -> Any:
    """Keys of the row from `lowest` up into the shared list `kept`, in no order; how many there
    are, of which only the first kept.size are kept. n_kept is shared int32[1]."""
    cuda.syncthreads()
    if cuda.threadIdx.x == 0:
        n_kept[0] = 0
    cuda.syncthreads()
    for i in range(cuda.threadIdx.x, n, cuda.blockDim.x):
        key = key_of(row[i], i)
        if key >= lowest:
            slot = cuda.atomic.add(n_kept, 0, 1)
            if slot < kept.size:
                kept[slot] = key
    cuda.syncthreads()
    return n_kept[0]


@cuda.jit(device=True)
def gather_top(
    row: Any, n: Any, k: Any, thread_best: Any, kept: Any, n_kept: Any, bins: Any, found: Any
) -> Any:
    """The k largest keys of the row, and perhaps a few more, into the shared list `kept`; how many.

    thread_best  the largest key of this thread's entries i = threadIdx.x + blockDim.x * j
    k            1 to blockDim.x; kept must hold blockDim.x keys or more

    The k-th largest of the threads' bests is no larger than the k-th of all: with it, one pass
    finds about k keys. Where too many pass, the exact k-th is selected from the row.
    """
    nothing = float32(0.0)
    cuda.syncthreads()
    kept[cuda.threadIdx.x] = thread_best
    lowest = _select_count_in_list(
        kept, cuda.blockDim.x, int64(0), nothing, nothing, k - 1, bins, found
    )
    n_found = gather(row, n, lowest, kept, n_kept)
    if n_found > kept.size:
        lowest = _select_count_in_row(row, n, int64(0), nothing, nothing, k - 1, bins, found)
        n_found = gather(row, n, lowest, kept, n_kept)
    return n_found


@cuda.jit(device=True)
def best_of_thread(row: Any, n: Any) -> Any:
    """The largest key of this thread's entries; -1 if it has none."""
    best = int64(-1)
    for i in range(cuda.threadIdx.x, n, cuda.blockDim.x):
        best = max(best, key_of(row[i], i))
    return best
