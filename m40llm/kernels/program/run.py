"""Runs a decode program: the whole of it again and again, or some instructions of it once.

run_once          instructions first to last - 1, once: a launch an instruction is the eager form
                  and what a graph records. No barriers, but for one where masks are applied
run_persistent    all instructions, a step a token, up to n_steps of them, in one launch: until no
                  slot has tokens to make, STOP, or no room for answers, or YIELD, or a step in
                  which all slots have waited for masks in vain

code         int64[n_instructions, N_WORDS]: see words.py. EMBED first, CHOOSE last
grid         n_blocks of 512 threads, all resident at once: an SM has room for one
results      the same in every form: no sum depends on which launch an instruction is in, but on
             the number of blocks
sm_52        128 registers, up to 48 KiB of shared memory: one block, 16 warps, an SM (25 %)

over the size law: `decode_program` is the interpreter's loop, and all its state is in it.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numba import cuda, float32, int32, int64, uint32, uint64

from m40llm.kernels.contract import Kernel, Launcher, check_array
from m40llm.kernels.intrinsics import load_volatile
from m40llm.kernels.program import words
from m40llm.kernels.program.add_normed import add_normed_of
from m40llm.kernels.program.attend import attend_of
from m40llm.kernels.program.barrier import arrive, wait
from m40llm.kernels.program.choose import choose_of, embed_of
from m40llm.kernels.program.code import (
    N_HELD,
    ask_next_norm,
    code_at,
    held_at,
    put_word,
    read_word,
    word_of,
)
from m40llm.kernels.program.exchange import writing_of
from m40llm.kernels.program.form import (
    MAX_TYPES,
    N_THREADS,
    N_WARPS,
    REGISTERS,
    Form,
)
from m40llm.kernels.program.mask import mask_of
from m40llm.kernels.program.pending import pending_of
from m40llm.kernels.program.product import product_of
from m40llm.kernels.program.rings import N_HOST, NOTHING_BEFORE, look_at_host
from m40llm.kernels.program.slots import read_slots_of
from m40llm.kernels.program.state import N_CONTROL, STEP
from m40llm.kernels.views import array_at, part_of


@dataclass(frozen=True)
class Program:
    """A program on a device. Whoever runs it holds the buffers that its instructions point to.

    code      int64[n_instructions, N_WORDS]
    arrived   DecodeState.arrived
    n_blocks  that its buffers are made for; no more than the card holds at once
    """

    form: Form
    code: Any
    arrived: Any
    n_blocks: int


@cache
def _no_product() -> Any:
    @cuda.jit(device=True, forceinline=True)
    def nothing(code: Any, slot_pos: Any, pool: Any, squares: Any, n_pending: Any) -> Any:
        return n_pending

    return nothing


@cache
def _products(form: Form) -> Any:
    """product(code, slot_pos, pool, squares, n_pending), of the type in code.this[OP]."""
    n_types = len(form.types)
    assert n_types <= MAX_TYPES, f"{form}: {n_types} types of matrices"
    products = [product_of(form, type) for type in form.types]
    product_0, product_1, product_2, product_3 = (products + [_no_product()] * 4)[:4]

    @cuda.jit(device=True, forceinline=True)
    def product(code: Any, slot_pos: Any, pool: Any, squares: Any, n_pending: Any) -> Any:
        which = word_of(code.this, words.OP) - words.PRODUCT
        if n_types == 1 or which == 0:
            return product_0(code, slot_pos, pool, squares, n_pending)
        if n_types == 2 or which == 1:
            return product_1(code, slot_pos, pool, squares, n_pending)
        if n_types == 3 or which == 2:
            return product_2(code, slot_pos, pool, squares, n_pending)
        return product_3(code, slot_pos, pool, squares, n_pending)

    return product


@cuda.jit(device=True, forceinline=True)
def _is_to_go(go: Any, epoch: Any, said: Any) -> Any:
    """Whether block 0 has said that this step is to be made, once it has; all blocks wait here.

    The fence makes visible what others wrote in the step before: above all, to the cache.
    """
    if cuda.threadIdx.x == 0:
        word = load_volatile(go, 0)
        while uint32(word >> 32) != epoch:
            word = load_volatile(go, 0)
        cuda.threadfence()
        said[0] = int32(word & 1)
    cuda.syncthreads()
    return said[0] != 0


@cache
def _compile(form: Form) -> Kernel:
    n_words, n_seqs = words.N_WORDS, form.n_seqs
    n_held, n_squares, n_pool = N_HELD * n_words, n_seqs * N_WARPS, form.pool_floats
    embed, attention, choose = embed_of(form), attend_of(form), choose_of(form.n_seqs)
    product, read_slots, mask = _products(form), read_slots_of(n_seqs), mask_of(n_seqs)
    add_normed, has_post_norms = add_normed_of(form), form.has_post_norms
    _, finish_pending = pending_of(form)

    def decode_program(program: Any, first: Any, last: Any, n_steps: Any, arrived: Any) -> None:
        pool = cuda.shared.array(n_pool, float32, alignment=16)
        squares = cuda.shared.array(n_squares, float32)
        held = cuda.shared.array(n_held, int64)
        slot_pos = cuda.shared.array(n_seqs, int32)
        slot_seq = cuda.shared.array(n_seqs, int32)
        slot_masked = cuda.shared.array(n_seqs, int32)
        host = cuda.shared.array(N_HOST, int64)
        said = cuda.shared.array(1, int32)
        steps = cuda.shared.array(1, int64)
        n_blocks, block, thread = uint64(cuda.gridDim.x), cuda.blockIdx.x, cuda.threadIdx.x
        target = arrived[0] // n_blocks * n_blocks  # no later than the first barrier is complete
        chosen = arrived[1]
        gone = arrived[2] // n_blocks * n_blocks
        n_instructions, is_resident = int32(program.shape[0]), n_steps > 0
        if thread < n_words:
            held[thread] = program[first, thread]
            second = int32(first + 1)
            held[n_words + thread] = program[second if second < n_instructions else 0, thread]
        cuda.syncthreads()
        if thread == 0:
            steps[0] = array_at(held[words.CONTROL], (N_CONTROL,), int64)[STEP]
            host[N_HOST - 1] = int64(NOTHING_BEFORE)
        cuda.syncthreads()
        if not is_resident:
            read_slots(held, slot_pos, slot_seq, slot_masked)
        n_done, n_pending, turn = int32(0), int32(0), int32(0)
        while True:
            w = part_of(held, held_at(turn), n_words, int64)
            word = read_word(program, w)
            code = code_at(held, turn, word, n_instructions, steps)
            operation = word_of(w, words.OP)
            if has_post_norms and operation == words.ADD_NORMED:
                add_normed(code, squares, pool, n_pending)
                n_pending = int32(0)
            elif operation >= words.PRODUCT:
                n_pending = product(code, slot_pos, pool, squares, n_pending)
            elif operation == words.ATTEND:
                finish_pending(code, n_pending, pool)
                put_word(code)
                n_pending = int32(0)
                attention(code, slot_pos, slot_seq, pool)
            elif operation == words.EMBED:
                put_word(code)
                step, pc = steps[0] + int64(1), word_of(w, words.PC)
                cuda.syncthreads()
                if thread == 0:
                    steps[0] = step
                cuda.syncthreads()
                if block == 0:
                    if is_resident and n_seqs > 1 and n_done > 0:
                        chosen += min(uint64(n_seqs), n_blocks)  # blocks that choose
                        wait(arrived, 1, chosen)
                    if not is_resident or n_done == 0:
                        look_at_host(w, host)
                    embed(w, step, n_instructions, pc, host)
                    if not is_resident and thread == 0:
                        array_at(w[words.CONTROL], (N_CONTROL,), int64)[STEP] = step
                if is_resident:
                    ask_next_norm(code)
                    go = array_at(w[words.GO], (1,), int64)
                    if not _is_to_go(go, writing_of(step, n_instructions, pc), said):
                        break
                    read_slots(w, slot_pos, slot_seq, slot_masked)
            else:
                put_word(code)
                is_masked = int32(0)  # the same in all blocks: nobody waits for who does not come
                for s in range(n_seqs):
                    is_masked |= slot_masked[s]
                if is_masked != 0:
                    mask(w, slot_pos, slot_masked, pool)
                if is_resident or is_masked != 0:
                    arrive(arrived, 0)
                    target += n_blocks
                    if block == 0:
                        look_at_host(w, host)
                    if block < n_seqs:
                        wait(arrived, 0, target)
                cuda.syncthreads()
                if block < n_seqs:
                    choose(w, slot_pos, pool)
                if is_resident and n_seqs > 1 and block < n_seqs:
                    arrive(arrived, 1)
                cuda.syncthreads()
            was_last = word_of(w, words.PC) == int32(last - 1)
            turn = int32(turn + 1)
            if was_last:
                n_done = int32(n_done + 1)
                if n_done >= n_steps:
                    finish_pending(
                        code_at(held, turn, word, n_instructions, steps), n_pending, pool
                    )
                    break
        if is_resident:  # once all have left, and so have read it, STEP may change
            arrive(arrived, 2)
            if block == 0:
                wait(arrived, 2, gone + n_blocks)
                if thread == 0:
                    array_at(held[words.CONTROL], (N_CONTROL,), int64)[STEP] = steps[0]

    return Kernel(decode_program, registers=REGISTERS)


def run_once(program: Program, first: int, last: int, *, stream: Launcher) -> None:
    """Instructions first to last - 1, once, without barriers between them: one at a time where one
    needs another's results."""
    _launch(program, first, last, 0, stream)


def run_persistent(program: Program, n_steps: int, *, stream: Launcher) -> None:
    """All instructions, up to n_steps times."""
    _launch(program, 0, int(program.code.shape[0]), n_steps, stream)


def _launch(program: Program, first: int, last: int, n_steps: int, stream: Launcher) -> None:
    check_array("code", program.code, np.int64, (None, words.N_WORDS))
    check_array("arrived", program.arrived, np.uint64, (3,))
    stream.launch(
        _compile(program.form), program.n_blocks, N_THREADS,
        program.code, np.int32(first), np.int32(last), np.int32(n_steps), program.arrived,
    )  # fmt: skip
