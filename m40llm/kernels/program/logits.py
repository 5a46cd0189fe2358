"""LOGITS, what becomes of them: kept for the sampler, and each block's share of what CHOOSE wants.

raw[s, row], and again in LOGITS_LEFT, where the sampler changes them; each block's largest key
(order.py), and its share of sum exp(logit), for log-probabilities.
"""

import math
from functools import cache
from typing import Any

from numba import cuda, float32, int32, int64, uint32

from m40llm.kernels.order import key_of
from m40llm.kernels.program import words
from m40llm.kernels.program.epilogue import LOWEST
from m40llm.kernels.program.form import N_THREADS, Form, is_sliced
from m40llm.kernels.reduce import WARP_SIZE, warp_max, warp_sum
from m40llm.kernels.views import array_at, part_of


@cuda.jit(device=True, forceinline=True)
def with_logit(logit: Any, row: Any, best: Any, top: Any, mass: Any) -> Any:
    """(best, top, mass) of a thread's logits and one more: the largest key, the largest logit, and
    sum exp(logit - top)."""
    higher = max(top, logit)
    mass = mass * math.exp(top - higher) + math.exp(logit - higher)
    return max(best, key_of(logit, row)), higher, mass


@cache
def put_logits_of(form: Form) -> Any:
    """put_logits(w, first, second, pair, extra, n_rows, best, top, mass)
    -> (best, top, mass) of this thread's logits so far."""
    n_seqs = form.n_seqs

    @cuda.jit(device=True, forceinline=True)
    def put_logits(
        w: Any, first: Any, second: Any, pair: Any, extra: Any, n_rows: Any,
        best: Any, top: Any, mass: Any,
    ) -> Any:  # fmt: skip
        if pair.is_mine != 0:
            raw = array_at(w[words.RAW], (n_seqs, n_rows), float32)
            left = array_at(w[words.LOGITS_LEFT], (n_seqs, n_rows), float32)
            first, second = first + extra.bias_first, second + extra.bias_second
            for row in range(pair.first, min(pair.first + 2, n_rows)):
                logit = first if row == pair.first else second
                raw[pair.s, row], left[pair.s, row] = logit, logit
                best, top, mass = with_logit(logit, row, best, top, mass)
        return best, top, mass

    return put_logits


@cache
def gather_of(form: Form) -> Any:
    """gather(w, best, top, mass, pool): the block's into DecodeState.best and .mass, from its
    threads'."""
    n_seqs = form.n_seqs
    step = 1 if is_sliced(n_seqs) else 2  # thread step * i has results of sequence i % n_seqs
    n_threads_a_seq = N_THREADS // step // n_seqs

    @cuda.jit(device=True, forceinline=True)
    def gather(w: Any, best: Any, top: Any, mass: Any, pool: Any) -> None:
        all_best = array_at(w[words.BEST], (n_seqs, cuda.gridDim.x), int64)
        all_mass = array_at(w[words.MASS], (n_seqs, cuda.gridDim.x, 2), float32)
        keys = part_of(pool, 0, N_THREADS, int64)
        tops = part_of(pool, 2 * N_THREADS, N_THREADS, float32)
        masses = part_of(pool, 3 * N_THREADS, N_THREADS, float32)
        cuda.syncthreads()
        mine = uint32(cuda.threadIdx.x)
        keys[mine], tops[mine], masses[mine] = best, top, mass
        cuda.syncthreads()
        s, lane = int32(mine // uint32(WARP_SIZE)), int32(mine % uint32(WARP_SIZE))
        if s < n_seqs:
            key, highest, whole = int64(-1), float32(LOWEST), float32(0)
            for i in range(lane, n_threads_a_seq, WARP_SIZE):
                other = uint32(step * (i * n_seqs + s))
                key = max(key, keys[other])
                highest = max(highest, tops[other])
            key, highest = warp_max(key), warp_max(highest)
            for i in range(lane, n_threads_a_seq, WARP_SIZE):
                other = uint32(step * (i * n_seqs + s))
                whole += masses[other] * math.exp(tops[other] - highest)
            whole = warp_sum(whole)
            if lane == 0:
                all_best[s, cuda.blockIdx.x] = key
                all_mass[s, cuda.blockIdx.x, 0] = highest
                all_mass[s, cuda.blockIdx.x, 1] = whole

    return gather
