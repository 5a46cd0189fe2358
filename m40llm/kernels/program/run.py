"""Runs a decode program: the whole of it again and again, or some instructions of it once.

run_once          instructions first to last - 1, once: a launch an instruction is the eager form
                  and what a graph records
run_persistent    all instructions, a step a token, up to n_steps of them, in one launch: until no
                  slot has tokens to make, STOP, or no room for answers

code         int64[n_instructions, N_WORDS]: see words.py. EMBED first, CHOOSE last
grid         n_blocks of 512 threads, all resident at once: an SM has room for one
results      the same in every form: no sum depends on which launch an instruction is in. Those of
             attention depend on the number of blocks.
sm_52        128 registers, 47.9 KiB of shared memory: one block, 16 warps, an SM (25 %)

"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numba import cuda, float32, int32, int64, uint64

from m40llm.kernels.contract import Kernel, Launcher, check_array
from m40llm.kernels.program import words
from m40llm.kernels.program.attend import attend_of
from m40llm.kernels.program.barrier import arrive, wait
from m40llm.kernels.program.choose import choose_of, embed_of
from m40llm.kernels.program.form import N_THREADS, POOL_FLOATS, REGISTERS, Form
from m40llm.kernels.program.product import product_of
from m40llm.kernels.program.state import IS_RUNNING, N_CONTROL
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
    def nothing(w: Any, arrived: Any, target: Any, waits: Any, pool: Any, scratch: Any) -> None:
        pass

    return nothing


@cache
def _instruction(form: Form) -> Any:
    n_types = len(form.types)
    assert n_types <= 4, f"{form}: a program has at most four types of matrices"
    products = [product_of(form, type) for type in form.types]
    product_0, product_1, product_2, product_3 = (products + [_no_product()] * 4)[:4]
    embed, attention, choose = embed_of(form), attend_of(form), choose_of(form)

    @cuda.jit(device=True, forceinline=True)
    def instruction(w: Any, arrived: Any, target: Any, waits: Any, pool: Any, scratch: Any) -> None:
        operation = int32(w[words.OP])
        if operation < words.PRODUCT:
            if waits:
                wait(arrived, target)
            if operation == words.EMBED:
                embed(w)
            elif operation == words.ATTEND:
                attention(w, pool)
            else:
                choose(w, pool)
        elif operation == words.PRODUCT:  # a product waits when its first weights are on their way
            product_0(w, arrived, target, waits, pool, scratch)
        elif n_types > 1 and operation == words.PRODUCT + 1:
            product_1(w, arrived, target, waits, pool, scratch)
        elif n_types > 2 and operation == words.PRODUCT + 2:
            product_2(w, arrived, target, waits, pool, scratch)
        elif n_types > 3:
            product_3(w, arrived, target, waits, pool, scratch)

    return instruction


@cache
def _compile(form: Form) -> Kernel:
    n_words = words.N_WORDS
    n_both = 2 * n_words
    do_instruction = _instruction(form)

    def decode_program(code: Any, first: Any, last: Any, n_steps: Any, arrived: Any) -> None:
        pool = cuda.shared.array(POOL_FLOATS, float32, alignment=16)
        scratch = cuda.shared.array(32, float32)
        both = cuda.shared.array(n_both, int64)
        n_blocks = uint64(cuda.gridDim.x)
        target = arrived[0] // n_blocks * n_blocks  # no later than the first barrier is complete
        is_resident = n_steps > 0
        thread = cuda.threadIdx.x
        turn, step, goes_on = int32(0), int32(0), True
        if thread < n_words:
            both[thread] = code[first, thread]
        cuda.syncthreads()
        while goes_on:
            for pc in range(first, last):
                w = part_of(both, turn * n_words, n_words, int64)
                turn = int32(1 - turn)
                if thread < n_words:  # the next instruction is at hand when this one is done
                    both[turn * n_words + thread] = code[pc + 1 if pc + 1 < last else first, thread]
                waits = is_resident and w[words.WAITS] != 0 and (pc > first or step > 0)
                if waits:
                    arrive(arrived)
                    target += n_blocks
                operation = w[words.OP]  # read now: `w` is overwritten once others go on
                do_instruction(w, arrived, target, waits, pool, scratch)
                cuda.syncthreads()
                if is_resident and operation == words.EMBED:
                    arrive(arrived)
                    target += n_blocks
                    wait(arrived, target)
                    control = array_at(w[words.CONTROL], (N_CONTROL,), int64)
                    if control[IS_RUNNING] == int64(0):
                        return
            step += int32(1)
            goes_on = step < n_steps

    return Kernel(decode_program, registers=REGISTERS)


def run_once(program: Program, first: int, last: int, *, stream: Launcher) -> None:
    """Instructions first to last - 1, once, without barriers: one at a time where one needs
    another's results."""
    _launch(program, first, last, 0, stream)


def run_persistent(program: Program, n_steps: int, *, stream: Launcher) -> None:
    """All instructions, up to n_steps times."""
    _launch(program, 0, int(program.code.shape[0]), n_steps, stream)


def _launch(program: Program, first: int, last: int, n_steps: int, stream: Launcher) -> None:
    check_array("code", program.code, np.int64, (None, words.N_WORDS))
    check_array("arrived", program.arrived, np.uint64, (1,))
    stream.launch(
        _compile(program.form), program.n_blocks, N_THREADS,
        program.code, np.int32(first), np.int32(last), np.int32(n_steps), program.arrived,
    )  # fmt: skip
