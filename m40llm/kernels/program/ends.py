"""The two ends of a decode step whose middle is a model's own ops.

begin_step   takes the host's commands, and says which slots have a row in this step: `row_pos`
end_step     chooses each slot's token from its logits, tells the host, and prepares the next step:
             two launches, of which the first surveys the logits, many blocks a slot

code      int64[1, N_WORDS]: the words that say where DecodeState's buffers are (words.py); RAW is
          where the ops put the logits
state     as a decode program's: rings, sampler and masks are the same (state.py, mask.py)
row_pos   a slot's position, or -1 for one that is idle: the ops append nothing for such a row
grid      begin_step: one block; survey: 8 a slot; end_step: a block a slot; 512 threads
results   the same whatever else is at work: each block looks at its own slot's logits
bytes     12 * vocab_size a slot that is at work: its logits are read once and kept for the sampler
"""

from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
from numba import cuda, float32, int32, int64, uint32

from m40llm.errors import KernelContractError
from m40llm.kernels.contract import Kernel, Launcher, check_array
from m40llm.kernels.intrinsics import load_volatile
from m40llm.kernels.program import words
from m40llm.kernels.program.choose import POOL_FLOATS, choose_of, gather_warp
from m40llm.kernels.program.epilogue import LOWEST
from m40llm.kernels.program.form import N_THREADS, N_WARPS, REGISTERS
from m40llm.kernels.program.logits import with_logit
from m40llm.kernels.program.mask import apply_mask_of
from m40llm.kernels.program.rings import N_HOST, NOTHING_BEFORE, commands_of, look_at_host
from m40llm.kernels.program.slots import read_slots_of
from m40llm.kernels.views import array_at

MAX_SLOTS: Final = 64  # the ring of commands has an entry for each
SURVEY_BLOCKS: Final = 8  # a slot
N_BLOCKS: Final = SURVEY_BLOCKS * N_WARPS  # DecodeState.best and .mass have a share of each warp


@dataclass(frozen=True)
class StepEnds:
    """Of a step on a device. Whoever runs it holds the buffers that `code` points to.

    code    int64[1, N_WORDS]
    n_seqs  slots: DecodeState's n_seqs
    """

    code: Any
    n_seqs: int


@cache
def _compile_begin(n_seqs: int) -> Kernel:
    take_commands = commands_of(n_seqs)

    def begin_step(code: Any) -> None:
        host = cuda.shared.array(N_HOST, int64)
        w = code[0]
        if cuda.threadIdx.x == 0:
            host[N_HOST - 1] = int64(NOTHING_BEFORE)
        look_at_host(w, host)
        if cuda.threadIdx.x == 0:
            is_running = take_commands(w, host)
            n_left = array_at(w[words.N_LEFT], (n_seqs,), int32)
            pos = array_at(w[words.POS], (n_seqs,), int32)
            row_pos = array_at(w[words.ROW_POS], (n_seqs,), int32)
            for s in range(n_seqs):
                row_pos[s] = pos[s] if is_running != 0 and n_left[s] > 0 else int32(-1)

    return Kernel(begin_step, registers=REGISTERS)


@cache
def _compile_survey(n_seqs: int) -> Kernel:
    def survey_logits(code: Any) -> None:
        """A slot's logits, kept for the sampler; of each warp's share the largest key and mass,
        where CHOOSE looks for those of blocks."""
        w, share, s = code[0], int32(cuda.blockIdx.x), int32(cuda.blockIdx.y)
        if load_volatile(array_at(w[words.ROW_POS], (n_seqs,), int32), s) < 0:
            return
        n_rows, thread = int32(w[words.VOCAB_SIZE]), int32(cuda.threadIdx.x)
        raw = array_at(w[words.RAW], (n_seqs, n_rows), float32)
        left = array_at(w[words.LOGITS_LEFT], (n_seqs, n_rows), float32)
        best, top, mass = int64(-1), float32(LOWEST), float32(0)
        for row in range(share * N_THREADS + thread, n_rows, SURVEY_BLOCKS * N_THREADS):
            logit = raw[s, row]
            left[s, row] = logit
            best, top, mass = with_logit(logit, row, best, top, mass)
        best, top, mass = gather_warp(best, top, mass)
        if thread & 31 == 0:
            warp = share * N_WARPS + (thread >> 5)
            array_at(w[words.BEST], (n_seqs, N_BLOCKS), int64)[s, warp] = best
            of_slot = array_at(w[words.MASS], (n_seqs, N_BLOCKS, 2), float32)
            of_slot[s, warp, 0], of_slot[s, warp, 1] = top, mass

    return Kernel(survey_logits, registers=REGISTERS)


@cache
def _compile_end(n_seqs: int) -> Kernel:
    read_slots = read_slots_of(n_seqs)
    apply_mask, choose = apply_mask_of(n_seqs), choose_of(n_seqs, is_apart=False)

    def end_step(code: Any) -> None:
        pool = cuda.shared.array(POOL_FLOATS, float32, alignment=16)
        slot_pos = cuda.shared.array(n_seqs, int32)
        slot_seq = cuda.shared.array(n_seqs, int32)
        slot_masked = cuda.shared.array(n_seqs, int32)
        w, s = code[0], int32(cuda.blockIdx.x)
        if s >= n_seqs:
            return
        read_slots(w, slot_pos, slot_seq, slot_masked)
        if slot_masked[s] != 0:
            number, n_rows = uint32(slot_pos[s] + 1), int32(w[words.VOCAB_SIZE])
            key = apply_mask(w, s, number, int32(0), n_rows, pool)
            best = array_at(w[words.BEST], (n_seqs, N_BLOCKS), int64)
            for share in range(cuda.threadIdx.x, N_BLOCKS, N_THREADS):
                best[s, share] = key
            cuda.syncthreads()
        choose(w, slot_pos, pool)

    return Kernel(end_step, registers=REGISTERS)


def begin_step(ends: StepEnds, *, stream: Launcher) -> None:
    """Commands taken, row_pos said."""
    _check(ends)
    stream.launch(_compile_begin(ends.n_seqs), 1, N_THREADS, ends.code)


def end_step(ends: StepEnds, *, stream: Launcher) -> None:
    """From logits to answers."""
    _check(ends)
    grid = (SURVEY_BLOCKS, ends.n_seqs)
    stream.launch(_compile_survey(ends.n_seqs), grid, N_THREADS, ends.code)
    # CHOOSE takes as many shares as there are blocks, of which only those of slots have work.
    stream.launch(_compile_end(ends.n_seqs), N_BLOCKS, N_THREADS, ends.code)


def _check(ends: StepEnds) -> None:
    check_array("code", ends.code, np.int64, (1, words.N_WORDS))
    if not 1 <= ends.n_seqs <= MAX_SLOTS:
        raise KernelContractError(f"n_seqs: expected 1 to {MAX_SLOTS}, got {ends.n_seqs}")
