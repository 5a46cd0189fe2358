"""What a block knows of the slots during a step, in shared memory."""

from functools import cache
from typing import Any

from numba import cuda, int32

from m40llm.kernels.intrinsics import load_volatile
from m40llm.kernels.program import words
from m40llm.kernels.views import array_at


@cache
def read_slots_of(n_seqs: int) -> Any:
    """read_slots(w, slot_pos, slot_seq, slot_masked): each slot's position and sequence, and
    whether it is at work and has masks; the whole block calls."""

    @cuda.jit(device=True, forceinline=True)
    def read_slots(w: Any, slot_pos: Any, slot_seq: Any, slot_masked: Any) -> None:
        s = int32(cuda.threadIdx.x)
        if s < n_seqs:
            pos = load_volatile(array_at(w[words.ROW_POS], (n_seqs,), int32), s)
            seq = load_volatile(array_at(w[words.SEQ], (n_seqs,), int32), s)
            masked = load_volatile(array_at(w[words.MASKED], (n_seqs,), int32), s)
            slot_pos[s], slot_seq[s] = pos, seq
            slot_masked[s] = masked if pos >= 0 else int32(0)
        cuda.syncthreads()

    return read_slots
