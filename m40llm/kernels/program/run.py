"""Runs a decode program: the whole of it again and again, or some instructions of it once.

run_program       instructions first to last - 1, once: a launch an instruction is the eager form
                  and what a graph records
run_persistent    all instructions, a step a token, up to n_steps of them, in one launch: until no
                  slot has tokens to make, STOP, or no room for answers

program      int64[n_instructions, N_WORDS]: see words.py. EMBED first, CHOOSE last
table        uint8[vocab_size, row_bytes]: the embedding, the file's own bytes
cos, sin     float32[max_seq_len or more, rope_dim / 2]
state        state.DecodeState
grid         n_blocks of 512 threads, all resident at once: an SM has room for one
results      the same in every form: no sum depends on which launch an instruction is in. Those of
             attention depend on the number of blocks.
sm_52        128 registers, 47.9 KiB of shared memory: one block, 16 warps, an SM (25 %)

over the size law: the kernel passes the state to each operation, argument by argument.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numba import cuda, float32, int32, int64, uint64

from m40llm.kernels.attention_common import score_factors, window_keys
from m40llm.kernels.contract import Kernel, Launcher, check_array
from m40llm.kernels.program import words
from m40llm.kernels.program.attend import attend_of
from m40llm.kernels.program.barrier import arrive, wait
from m40llm.kernels.program.choose import choose_of, embed_of
from m40llm.kernels.program.form import N_THREADS, POOL_FLOATS, REGISTERS, Form
from m40llm.kernels.program.product import product_of
from m40llm.kernels.program.state import IS_RUNNING, DecodeState
from m40llm.kernels.views import part_of


@dataclass(frozen=True)
class Model:
    """What every instruction shares.

    scale    of attention's scores; window: keys that a row sees, 0 for all
    """

    form: Form
    program: Any
    table: Any
    cos: Any
    sin: Any
    eps: float
    scale: float
    window: int
    max_seq_len: int


@cache
def _no_product() -> Any:
    @cuda.jit(device=True, forceinline=True)
    def nothing(
        w: Any, arrived: Any, target: Any, waits: Any, eps: Any, pool: Any, scratch: Any,
        cos: Any, sin: Any, seq: Any, row_pos: Any, max_seq_len: Any, best: Any, mass: Any,
        raw: Any,
    ) -> None:  # fmt: skip
        pass

    return nothing


@cache
def _compile(form: Form) -> Kernel:
    n_words, n_types = words.N_WORDS, len(form.types)
    n_both = 2 * n_words
    assert n_types <= 4, f"{form}: a program has at most four types of matrices"
    products = [product_of(form, type) for type in form.types]
    product_0, product_1, product_2, product_3 = (products + [_no_product()] * 4)[:4]
    embed, attention, choose = embed_of(form), attend_of(form), choose_of(form)

    def decode_program(
        program: Any, first: Any, last: Any, n_steps: Any, eps: Any, inner: Any, outer: Any,
        window: Any, max_seq_len: Any, table: Any, cos: Any, sin: Any, token_ids: Any, pos: Any,
        row_pos: Any, seq: Any, n_left: Any, stop_ids: Any, control: Any, arrived: Any, best: Any,
        mass: Any, partial: Any, merged: Any, raw: Any, logits: Any, settings: Any, top_k: Any,
        seed: Any, bias_ids: Any, bias_values: Any, history: Any, commands: Any, answers: Any,
        n_taken: Any,
    ) -> None:  # fmt: skip
        pool = cuda.shared.array(POOL_FLOATS, float32, alignment=16)
        scratch = cuda.shared.array(32, float32)
        both = cuda.shared.array(n_both, int64)
        n_blocks = uint64(cuda.gridDim.x)
        target = arrived[0] // n_blocks * n_blocks  # no later than the first barrier is complete
        is_resident = n_steps > 0
        thread = cuda.threadIdx.x
        turn = int32(0)
        if thread < n_words:
            both[thread] = program[first, thread]
        cuda.syncthreads()
        step = int32(0)
        goes_on = True
        while goes_on:
            for pc in range(first, last):
                w = part_of(both, turn * n_words, n_words, int64)
                turn = 1 - turn
                after = pc + 1 if pc + 1 < last else first
                if thread < n_words:  # the next instruction is at hand when this one is done
                    both[turn * n_words + thread] = program[after, thread]
                waits = is_resident and w[words.WAITS] != 0 and (pc > first or step > 0)
                if waits:
                    arrive(arrived)
                    target += n_blocks
                operation = int32(w[words.OP])
                if operation < words.PRODUCT:
                    if waits:
                        wait(arrived, target)
                    if operation == words.EMBED:
                        embed(
                            w, table, token_ids, pos, row_pos, n_left, control, commands, answers,
                            n_taken,
                        )  # fmt: skip
                    elif operation == words.ATTEND:
                        attention(
                            w, inner, outer, window, pool, seq, row_pos, max_seq_len, partial,
                            merged,
                        )  # fmt: skip
                    else:
                        choose(
                            pool, best, mass, raw, logits, token_ids, pos, row_pos, n_left,
                            stop_ids, settings, top_k, seed, bias_ids, bias_values, history,
                            control, answers, max_seq_len,
                        )  # fmt: skip
                elif operation == words.PRODUCT:
                    product_0(
                        w, arrived, target, waits, eps, pool, scratch, cos, sin, seq, row_pos,
                        max_seq_len, best, mass, raw,
                    )  # fmt: skip
                elif n_types > 1 and operation == words.PRODUCT + 1:
                    product_1(
                        w, arrived, target, waits, eps, pool, scratch, cos, sin, seq, row_pos,
                        max_seq_len, best, mass, raw,
                    )  # fmt: skip
                elif n_types > 2 and operation == words.PRODUCT + 2:
                    product_2(
                        w, arrived, target, waits, eps, pool, scratch, cos, sin, seq, row_pos,
                        max_seq_len, best, mass, raw,
                    )  # fmt: skip
                elif n_types > 3:
                    product_3(
                        w, arrived, target, waits, eps, pool, scratch, cos, sin, seq, row_pos,
                        max_seq_len, best, mass, raw,
                    )  # fmt: skip
                cuda.syncthreads()
                if is_resident and operation == words.EMBED:
                    arrive(arrived)
                    target += n_blocks
                    wait(arrived, target)
                    if control[IS_RUNNING] == int64(0):
                        return
            step += 1
            goes_on = step < n_steps

    return Kernel(decode_program, registers=REGISTERS)


def run_program(
    model: Model, state: DecodeState, first: int, last: int, *, n_blocks: int, stream: Launcher
) -> None:
    """Instructions first to last - 1, once, without barriers: one at a time where one needs
    another's results."""
    _launch(model, state, first, last, 0, n_blocks, stream)


def run_persistent(
    model: Model, state: DecodeState, n_steps: int, *, n_blocks: int, stream: Launcher
) -> None:
    """All instructions, up to n_steps times; n_blocks must not be more than are resident."""
    _launch(model, state, 0, int(model.program.shape[0]), n_steps, n_blocks, stream)


def _launch(
    model: Model, state: DecodeState, first: int, last: int, n_steps: int, n_blocks: int,
    stream: Launcher,
) -> None:  # fmt: skip
    form = model.form
    check_array("program", model.program, np.int64, (None, words.N_WORDS))
    check_array("table", model.table, np.uint8, (None, None))
    check_array("cos", model.cos, np.float32, (None, form.rope_dim // 2))
    check_array("sin", model.sin, np.float32, model.cos.shape)
    state.check(form.n_seqs, int(model.table.shape[0]))
    inner, outer = score_factors(model.scale, 0.0)
    s, sampler = state, state.sampler
    stream.launch(
        _compile(form), n_blocks, N_THREADS,
        model.program, np.int32(first), np.int32(last), np.int32(n_steps), np.float32(model.eps),
        inner, outer, window_keys(model.window), np.int32(model.max_seq_len), model.table,
        model.cos, model.sin, s.token_ids, s.pos, s.row_pos, s.seq, s.n_left, s.stop_ids,
        s.control, s.arrived, s.best, s.mass, s.partial, s.merged, s.raw, s.logits,
        sampler.settings, sampler.top_k, sampler.seed, sampler.bias_ids, sampler.bias_values,
        sampler.history, s.commands, s.answers, s.n_taken,
    )  # fmt: skip
