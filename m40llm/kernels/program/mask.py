"""Masks: which tokens may come next, as the host says for each token of a slot that it constrains.

masks    int64[n_seqs, n_mask_words(vocab_size)] in pinned memory, written by the host; of a slot:
         number << 32 | bits, bit i of word w for token 32 w + i; `number`, the same in all words of
         a mask, is the position that the token will take, so that the next mask has the next one
masked   int32[n_seqs]: 1 where the host gives masks; does not change while a launch runs

is_any = mask(w, slot_pos, slot_masked, pool)    in every block, between LOGITS and the choice

A block takes the mask of those rows whose logits are its own. Their share of the words comes in one
trip over the bus, each with word of its arrival, as in exchange.py: no fence, and no order of the
host's stores is needed. What must not come becomes -inf in LOGITS_LEFT, where the sampler looks,
and no key of BEST; the raw logits and their mass, of which log-probabilities are made, stay.

A mask that does not come within POLLS looks is late: then BEST is LATE, larger than any key, and
whoever chooses sees it in the largest key, whichever block missed it. So all blocks are of one mind
without having talked: there is no token, nothing of the slot changes, and the next step is the same
again. Nobody waits for the host for long, alive or not.

One buffer a slot is enough. The host writes a mask when it has the token before, which was chosen
when all blocks had come to the choice, each with all of the mask before in its registers.
"""

from functools import cache
from typing import Any, Final

from numba import cuda, float32, int32, int64, uint32

from m40llm.kernels.block_reduce import block_max
from m40llm.kernels.intrinsics import load_uint2_volatile
from m40llm.kernels.order import key_of
from m40llm.kernels.program import words
from m40llm.kernels.program.code import share_of, word_of
from m40llm.kernels.program.form import N_THREADS
from m40llm.kernels.views import UNSEEN, array_at, never_inlined, part_of

POLLS: Final = 512  # some 2 us each on a card: about as long as a step
LAST_POLLS: Final = 64  # for the other words, which the host writes within 10 us of the first
LATE: Final = (1 << 63) - 1  # a key has 54 bits
WORD_BITS: Final = 32
_MINUS_INFINITY: Final = float("-inf")


def n_mask_words(vocab_size: int) -> int:
    """Words of a mask."""
    return -(-vocab_size // WORD_BITS)


@cuda.jit(device=True, forceinline=True)
def _my_rows(w: Any) -> Any:
    """(first, end) of the rows whose logits this block has put; `w` is CHOOSE."""
    block, shift = int32(cuda.blockIdx.x), word_of(w, words.SLICE_SHIFT)
    first, end = share_of(w, int32(block >> shift))
    slice, n_groups = int32(block & int32((1 << shift) - 1)), int32(end - first)
    group_rows, n_rows = word_of(w, words.N_ROWS), word_of(w, words.VOCAB_SIZE)
    end = int32(first + (int32(n_groups * int32(slice + 1)) >> shift)) * group_rows
    first = int32(first + (int32(n_groups * slice) >> shift)) * group_rows
    return int32(min(int32(first), n_rows)), int32(min(int32(end), n_rows))


@cuda.jit(device=True, forceinline=True)
def _look(masks: Any, at: Any, number: Any, n_looks: Any) -> Any:
    """(the bits of a word of a mask, whether they have come) after up to so many looks."""
    bits, seen = load_uint2_volatile(masks, 2 * at)
    n_left = int32(n_looks - 1)
    while seen != number and n_left > 0:
        bits, seen = load_uint2_volatile(masks, 2 * at)
        n_left = int32(n_left - 1)
    return bits, seen == number


@cuda.jit(device=True, forceinline=True)
def _is_any(condition: Any) -> Any:
    """Whether it holds for a thread of the block; a barrier."""
    return cuda.syncthreads_or(int32(1 if condition else 0)) != 0


@cuda.jit(device=True, forceinline=True)
def _take(masks: Any, at: Any, end: Any, number: Any, bits: Any) -> Any:
    """Words `at` to end - 1 of a mask, at most N_THREADS, into shared memory -> whether all have
    come. Where they have not, one thread looks for the first: all of them would fill the bus."""
    thread = int32(cuda.threadIdx.x)
    mine, has_come = int32(at + thread), True
    if mine < end:
        bits[thread], has_come = _look(masks, mine, number, int32(1))
    if not _is_any(not has_come):
        return True
    if thread == 0:
        _look(masks, at, number, int32(POLLS))
    cuda.syncthreads()
    if not has_come:
        bits[thread], has_come = _look(masks, mine, number, int32(LAST_POLLS))
    return not _is_any(not has_come)


@cache
def apply_mask_of(n_seqs: int) -> Any:
    """apply(w, s, number, first, end, pool): mask `number` of slot s to these rows -> the largest
    key that is left, -1 for none, LATE; the whole block calls."""

    @cuda.jit(device=True, forceinline=True)
    def apply(w: Any, s: Any, number: Any, first: Any, end: Any, pool: Any) -> Any:
        n_rows, thread = word_of(w, words.VOCAB_SIZE), int32(cuda.threadIdx.x)
        raw = array_at(w[words.RAW], (n_seqs, n_rows), float32)
        left = array_at(w[words.LOGITS_LEFT], (n_seqs, n_rows), float32)
        n_words = int32((n_rows + int32(WORD_BITS - 1)) >> 5)
        masks = array_at(w[words.MASKS] + int64(8) * s * n_words, (UNSEEN,), uint32)
        bits, scratch = part_of(pool, 0, N_THREADS, uint32), part_of(pool, N_THREADS, 32, int64)
        at, end_word, best = int32(first >> 5), int32((end + int32(31)) >> 5), int64(-1)
        while at < end_word and first < end:
            if not _take(masks, at, end_word, number, bits):
                return int64(LATE)
            row = int32(max(first, int32(at << 5)) + thread)
            last = int32(min(end, int32(int32(at + int32(N_THREADS)) << 5)))
            while row < last:
                if (bits[int32(row >> 5) - at] >> uint32(row & 31)) & uint32(1):
                    best = max(best, key_of(raw[s, row], row))
                else:
                    left[s, row] = float32(_MINUS_INFINITY)
                row += int32(N_THREADS)
            cuda.syncthreads()  # all are done with `bits`
            at += int32(N_THREADS)
        return block_max(best, scratch)

    return apply


@cache
def mask_of(n_seqs: int) -> Any:
    """mask(w, slot_pos, slot_masked, pool): of all slots that have masks; `w` is CHOOSE."""
    apply = apply_mask_of(n_seqs)

    @cuda.jit(device=True)
    def mask(w: Any, slot_pos: Any, slot_masked: Any, pool: Any) -> None:
        never_inlined()
        best = array_at(w[words.BEST], (n_seqs, cuda.gridDim.x), int64)
        first, end = _my_rows(w)
        cuda.syncthreads()  # what was in `pool` has been used, and the logits are there
        for s in range(n_seqs):
            if slot_masked[s] != 0:
                key = apply(w, s, uint32(slot_pos[s] + 1), first, end, pool)
                if cuda.threadIdx.x == 0:
                    best[s, cuda.blockIdx.x] = key

    return mask
