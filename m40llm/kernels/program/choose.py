"""The ends of a step: EMBED begins it, CHOOSE finds each slot's token, tells the host, and stops.

EMBED   block 0 alone: takes the commands that have come, decides whether there is anything to do,
        tells all (`go`), and puts the embedding of each slot's token into x.
CHOOSE  block s for slot s: the token, by the blocks' largest keys where the slot is greedy and
        has neither bias nor penalties, else by the sampler (sampling.py); its log-probability;
        then the answer, and what the next step needs. Nothing at all where a block's key is LATE.
"""

import math
from functools import cache
from typing import Any, Final

from numba import cuda, float32, int32, int64, uint8, uint32, uint64

from m40llm.gguf.blocks import FORMATS
from m40llm.kernels.bits import uint_as_float
from m40llm.kernels.intrinsics import store_volatile
from m40llm.kernels.order import N_BINS, id_of, logit_of
from m40llm.kernels.program import state, words
from m40llm.kernels.program.code import word_of
from m40llm.kernels.program.epilogue import LOWEST
from m40llm.kernels.program.exchange import give1, writing_of
from m40llm.kernels.program.form import N_THREADS, N_WARPS, Form
from m40llm.kernels.program.mask import LATE
from m40llm.kernels.program.rings import answer, commands_of
from m40llm.kernels.quant_blocks import WEIGHT_OF
from m40llm.kernels.reduce import FULL_MASK, warp_max, warp_sum
from m40llm.kernels.sampling import (
    FREQUENCY,
    IN_ANSWER,
    N_SETTINGS,
    PRESENCE,
    REPETITION,
    TEMPERATURE,
    draw_token,
)
from m40llm.kernels.views import array_at, never_inlined, part_of

_CAPACITY: Final = 2 * N_THREADS  # of the sampler's list of tokens
POOL_FLOATS: Final = 2 * _CAPACITY + 2 * N_BINS + 72  # of shared memory, that CHOOSE takes


@cache
def embed_of(form: Form) -> Any:
    """embed(w, step, n_instructions, pc, host): the instruction w, in block 0."""
    weight, n_seqs = WEIGHT_OF[form.table_type], form.n_seqs
    block = FORMATS[form.table_type]
    n_weights, n_bytes = block.n_weights, block.n_bytes
    take_commands, has_factors = commands_of(n_seqs), form.has_factors

    @cuda.jit(device=True)
    def embed(w: Any, step: Any, n_instructions: Any, pc: Any, host: Any) -> None:
        never_inlined()
        table = array_at(w[words.TABLE], (w[words.VOCAB_SIZE], w[words.ROW_BYTES]), uint8)
        token_ids = array_at(w[words.TOKEN_IDS], (n_seqs,), int32)
        row_pos = array_at(w[words.ROW_POS], (n_seqs,), int32)
        epoch = writing_of(step, n_instructions, pc)
        if cuda.threadIdx.x == 0:
            n_left = array_at(w[words.N_LEFT], (n_seqs,), int32)
            pos = array_at(w[words.POS], (n_seqs,), int32)
            is_running = take_commands(w, host)
            for s in range(n_seqs):
                row_pos[s] = pos[s] if n_left[s] > 0 else int32(-1)
            cuda.threadfence()  # who sees `go` shall see them
            go = array_at(w[words.GO], (1,), int64)
            store_volatile(go, 0, int64(epoch) << 32 | is_running)
        cuda.syncthreads()
        out = array_at(w[words.OUT], (n_seqs * w[words.OUT_COLS] * 2,), uint32)
        for s in range(n_seqs):
            is_idle = row_pos[s] < 0
            row = table[0 if is_idle else token_ids[s]]
            for c in range(cuda.threadIdx.x, w[words.OUT_COLS], N_THREADS):
                value = float32(0)
                if not is_idle:
                    value = weight(row, int64(c // n_weights) * n_bytes, c % n_weights)
                    if has_factors:
                        value *= uint_as_float(uint32(word_of(w, words.FACTOR)))
                give1(out, s * w[words.OUT_COLS] + c, value, epoch)

    return embed


@cuda.jit(device=True, forceinline=True)
def _reason(is_stop: Any, n_left: Any, next_pos: Any, max_seq_len: Any) -> Any:
    """Whether this token is the slot's last, and why: the order is the engine's."""
    if is_stop:
        return state.STOP_TOKEN
    if n_left <= 1:
        return state.LENGTH
    if next_pos >= max_seq_len:
        return state.CONTEXT
    return state.GOES_ON


@cache
def _settle_of(n_seqs: int) -> Any:
    """settle(w, s, token, logprob, is_stop, next_pos, n_left, n_answered): the answer, and what
    the next step needs. n_answered: before this step; of one sequence alone it is the index."""

    @cuda.jit(device=True, forceinline=True)
    def settle(
        w: Any, s: Any, token: Any, logprob: Any, is_stop: Any, next_pos: Any, n_left: Any,
        n_answered: Any,
    ) -> None:  # fmt: skip
        control = array_at(w[words.CONTROL], (state.N_CONTROL,), int64)
        answers = array_at(w[words.ANSWERS], (state.N_ANSWERS, 2), int64)
        done = state.DAMAGED
        if token >= 0:
            history = array_at(w[words.HISTORY], (n_seqs, w[words.VOCAB_SIZE]), int32)
            done = _reason(is_stop, n_left, next_pos, w[words.MAX_SEQ_LEN])
            cuda.atomic.add(history, (s, token), IN_ANSWER)  # not waited for
            array_at(w[words.TOKEN_IDS], (n_seqs,), int32)[s] = int32(token)
            array_at(w[words.POS], (n_seqs,), int32)[s] = next_pos
        still_left = n_left - 1 if done == state.GOES_ON else int32(0)
        array_at(w[words.N_LEFT], (n_seqs,), int32)[s] = still_left
        index = n_answered
        if n_seqs == 1:  # nobody else answers
            control[state.ANSWERED] = n_answered + int64(1)
        else:
            index = cuda.atomic.add(control, state.ANSWERED, int64(1))
        answer(answers, index, s, token, logprob, done)

    return settle


@cache
def _sample_of(n_seqs: int, is_apart: bool) -> Any:
    """sample(w, s, pos, pool): draw_token for slot s."""
    capacity, bins_at, scratch_at = _CAPACITY, 2 * _CAPACITY, 2 * _CAPACITY + 2 * N_BINS

    @cuda.jit(device=True)
    def sample(w: Any, s: Any, pos: Any, pool: Any) -> Any:
        if is_apart:
            never_inlined()
        n_bias, vocab = w[words.MAX_BIAS], w[words.VOCAB_SIZE]
        logits = array_at(w[words.LOGITS_LEFT], (n_seqs, vocab), float32)
        settings = array_at(w[words.SETTINGS], (n_seqs, N_SETTINGS), float32)
        top_k = array_at(w[words.TOP_K], (n_seqs,), int32)
        seed = array_at(w[words.SEED], (n_seqs,), uint64)
        bias_ids = array_at(w[words.BIAS_IDS], (n_seqs, n_bias), int32)
        bias_values = array_at(w[words.BIAS_VALUES], (n_seqs, n_bias), float32)
        history = array_at(w[words.HISTORY], (n_seqs, vocab), int32)
        kept = part_of(pool, 0, capacity, int64)
        bins = part_of(pool, bins_at, N_BINS, int64)
        wide = part_of(pool, scratch_at, 32, int64)
        found = part_of(pool, scratch_at + 64, 2, int64)
        n_kept = part_of(pool, scratch_at + 68, 1, int32)
        return draw_token(
            logits[s], pos, settings[s], top_k[s], seed[s], bias_ids[s], bias_values[s],
            history[s], kept, bins, wide, found, n_kept,
        )  # fmt: skip

    return sample


@cuda.jit(device=True, forceinline=True)
def gather_warp(key: Any, top: Any, whole: Any) -> Any:
    """(key, top, whole) of a warp: the largest key and logit, and sum exp(logit - top)."""
    highest = warp_max(top)
    return warp_max(key), highest, warp_sum(whole * math.exp(top - highest))


@cache
def choose_of(n_seqs: int, is_apart: bool = True) -> Any:
    """choose(w, slot_pos, pool): the instruction w.

    is_apart  it and the sampler stay functions of their own, as a kernel of many instructions needs
              (views.never_inlined); in one that only chooses they are inlined, and nothing spills

    This code is cold each time, so that each line of it is a trip to memory: it is kept short.
    Warp 0 does all that a greedy slot needs, after a trip to memory for all of it at once.
    """
    sample, settle = _sample_of(n_seqs, is_apart), _settle_of(n_seqs)

    @cuda.jit(device=True)
    def choose(w: Any, slot_pos: Any, pool: Any) -> None:
        if is_apart:
            never_inlined()
        n_blocks, thread = int32(cuda.gridDim.x), int32(cuda.threadIdx.x)
        warp, lane = int32(thread >> 5), int32(thread & 31)
        best = array_at(w[words.BEST], (n_seqs, n_blocks), int64)
        mass = array_at(w[words.MASS], (n_seqs, n_blocks, 2), float32)
        keys, tops = part_of(pool, 0, N_WARPS, int64), part_of(pool, 64, N_WARPS, float32)
        masses, said = part_of(pool, 96, N_WARPS, float32), part_of(pool, 128, 2, int64)
        for s in range(int32(cuda.blockIdx.x), n_seqs, n_blocks):
            if slot_pos[s] >= 0:
                key, top, whole = int64(-1), float32(LOWEST), float32(0)
                for other in range(thread, n_blocks, N_THREADS):
                    key = max(key, best[s, other])
                    higher, share = mass[s, other, 0], mass[s, other, 1]
                    if higher > top:
                        whole, top = whole * math.exp(top - higher), higher
                    whole += share * math.exp(higher - top)
                is_special, stop_id, n_left, n_answered = False, int32(-1), int32(0), int64(0)
                if warp == 0:
                    is_special = _is_special(w, n_seqs, s, lane)
                    if lane < state.MAX_STOP_IDS:
                        stop_ids = array_at(w[words.STOP_IDS], (n_seqs, state.MAX_STOP_IDS), int32)
                        stop_id = stop_ids[s, lane]
                    n_left = array_at(w[words.N_LEFT], (n_seqs,), int32)[s]
                    control = array_at(w[words.CONTROL], (state.N_CONTROL,), int64)
                    n_answered = control[state.ANSWERED]
                key, top, whole = gather_warp(key, top, whole)
                if lane == 0:
                    keys[warp], tops[warp], masses[warp] = key, top, whole
                if warp == 0:
                    is_any = cuda.any_sync(FULL_MASK, is_special)
                    if lane == 0:
                        said[0] = int64(1 if is_any else 0)
                is_late = cuda.syncthreads_or(int32(1 if key == int64(LATE) else 0)) != 0
                is_plain, token = said[0] == 0, int64(-1)
                logsumexp, logit = float32(0), float32(0)
                if warp == 0:
                    mine = lane % N_WARPS
                    whole = masses[mine] if lane < N_WARPS else float32(0)
                    key, highest, whole = gather_warp(keys[mine], tops[mine], whole)
                    logsumexp, logit = highest + math.log(whole), logit_of(key)
                    if is_plain and logit > float32(LOWEST):
                        token = id_of(key)
                if not is_plain and not is_late:
                    cuda.syncthreads()  # `pool` is the sampler's
                    token = sample(w, s, slot_pos[s] + 1, pool)
                if warp == 0 and not is_late:
                    is_stop = cuda.any_sync(FULL_MASK, stop_id >= 0 and int64(stop_id) == token)
                    if lane == 0:
                        logprob = float32(0)
                        if not (logsumexp > float32(LOWEST) and logsumexp < float32(-LOWEST)):
                            token, logprob = int64(-1), logsumexp  # a logit was NaN or infinite
                        elif token >= 0:
                            if not is_plain:
                                vocab = w[words.VOCAB_SIZE]
                                logit = array_at(w[words.RAW], (n_seqs, vocab), float32)[s, token]
                            logprob = logit - logsumexp
                        settle(w, s, token, logprob, is_stop, slot_pos[s] + 1, n_left, n_answered)
                if n_seqs > 1:
                    cuda.syncthreads()

    return choose


@cuda.jit(device=True, forceinline=True)
def _is_special(w: Any, n_seqs: Any, s: Any, lane: Any) -> Any:
    """Whether the lane sees that slot s is not greedy, or has bias or penalties."""
    is_special = False
    if lane < N_SETTINGS:
        setting = array_at(w[words.SETTINGS], (n_seqs, N_SETTINGS), float32)[s, lane]
        if lane in (TEMPERATURE, PRESENCE, FREQUENCY):
            is_special = setting != float32(0)
        elif lane == REPETITION:
            is_special = setting != float32(1)
    elif lane == N_SETTINGS:
        is_special = array_at(w[words.BIAS_IDS], (n_seqs, w[words.MAX_BIAS]), int32)[s, 0] >= 0
    return is_special
