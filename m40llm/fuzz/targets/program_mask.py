"""Masks of the decode program: what a block leaves of its logits, and its largest key."""

from functools import cache
from typing import Any

import numpy as np
from numba import cuda, float32
from numpy.typing import NDArray

from m40llm import reference
from m40llm.device.gpu.bound import address
from m40llm.fuzz.definition import target
from m40llm.fuzz.strategies import choices, flags, seeds, sizes
from m40llm.kernels.contract import Kernel, ceil_div
from m40llm.kernels.order import ID_BITS
from m40llm.kernels.program import mask as kernels
from m40llm.kernels.program import words
from m40llm.kernels.program.form import N_THREADS, REGISTERS

POOL_FLOATS = 1024
POS = 7  # of the token that goes in


@cache
def apply_masks_of(ops: Any, n_seqs: int) -> Kernel:
    """apply_masks(w, slot_pos, slot_masked): the device function alone, as a kernel."""
    mask = ops.mask_of(n_seqs)

    def apply_masks(w: Any, slot_pos: Any, slot_masked: Any) -> None:
        pool = cuda.shared.array(POOL_FLOATS, float32, alignment=16)
        mask(w, slot_pos, slot_masked, pool)

    return Kernel(apply_masks, registers=REGISTERS)


@target(
    ops=kernels,
    vocab_size=choices([1, 31, 32, 33, 300, 1000, 17_000]),
    n_blocks=sizes(4, 5),
    group_rows=choices([2, 4, 8]),
    is_sliced=flags(),
    n_seqs=choices([1, 2, 4]),
    density=choices([0.5, 0.01, 0.0, 1.0]),
    is_late=flags(),
    seed=seeds(),
)
def program_mask(
    card: Any, ops: Any, vocab_size: int, n_blocks: int, group_rows: int, is_sliced: bool,
    n_seqs: int, density: float, is_late: bool, seed: int,
) -> None:  # fmt: skip
    """Of slots with masks, of which one may lack a word; the others' logits stay as they are."""
    rng = np.random.default_rng(seed)
    shift = 1 if is_sliced and n_blocks % 2 == 0 else 0
    logits = rng.normal(0, 4, (n_seqs, vocab_size)).astype(np.float32)
    n_words = ops.n_mask_words(vocab_size)
    allowed = rng.random((n_seqs, 32 * n_words)) < density
    bits = np.packbits(allowed, axis=1, bitorder="little").view("<u4").astype(np.int64)
    numbers = np.full((n_seqs, n_words), POS + 1)
    late_word = int(rng.integers(n_words)) if is_late else -1
    if is_late:
        numbers[0, late_word] = rng.choice([0, POS, POS + 2])
    masked = rng.integers(0, 2, n_seqs).astype(np.int32)
    masked[0] = 1
    w = np.zeros(words.N_WORDS, np.int64)
    n_groups = ceil_div(vocab_size, group_rows)
    w[words.GROUPS_A_BLOCK], w[words.GROUPS_LEFT] = divmod(n_groups, n_blocks >> shift)
    w[words.SLICE_SHIFT], w[words.N_ROWS], w[words.VOCAB_SIZE] = shift, group_rows, vocab_size
    left = card.upload(logits, read_only=False)
    best = card.upload(np.full((n_seqs, n_blocks), 5, np.int64), read_only=False)
    masks = card.upload(numbers.astype(np.int64) << 32 | bits)
    raw = card.upload(logits)
    for word, buffer in (
        *((words.RAW, raw), (words.LOGITS_LEFT, left)),
        *((words.BEST, best), (words.MASKS, masks)),
    ):
        w[word] = address(buffer)
    slots = card.upload(np.full(n_seqs, POS, np.int32)), card.upload(masked)
    card.launch(apply_masks_of(ops, n_seqs), n_blocks, N_THREADS, card.upload(w), *slots)
    keys, got = card.read(best), card.read(left)
    for s in range(n_seqs):
        if not masked[s]:
            assert (keys[s] == 5).all()
            np.testing.assert_array_equal(got[s], logits[s])
        elif s or not is_late:
            expected = reference.masked(logits[s], bits[s])
            np.testing.assert_array_equal(got[s], expected)
            assert int(keys[s].max()) == _largest_key(expected, logits[s], allowed[s])
        else:
            assert int(keys[s].max()) == ops.LATE


def _largest_key(left: NDArray[Any], logits: NDArray[Any], allowed: NDArray[np.bool_]) -> int:
    """As order.py has it: of the smallest id with the largest logit; -1 where there is none."""
    if not allowed[: logits.size].any():
        return -1
    best = int(np.argmax(left))
    bits = int(np.float32(logits[best] + np.float32(0)).view(np.uint32))
    flipped = bits ^ (0xFFFFFFFF if bits >> 31 else 0x80000000)
    return (flipped << ID_BITS) + ((1 << ID_BITS) - 1 - best)
