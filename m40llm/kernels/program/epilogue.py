"""What becomes of a product's results: thread t of a panel has the result of one row and sequence.

STORE   out[s, row] = result + bias
ADD     out[s, row] += result + bias                       the residual stream
SWIGLU  out[s, p] = silu(gate) * up                        of pair p, see rows.py
APPEND  q to `out`, K and V to the cache at (seq[s], row_pos[s]); q and K turned by RoPE, K and V
        rounded to FP16. A sequence whose row_pos is -1 is idle: nothing of it is cached.
LOGITS  out[s, row], and again in `raw`, which the sampler leaves alone; each block's largest key
        (order.py), and its share of sum exp(logit), for log-probabilities
"""

import math
from functools import cache
from typing import Any, Final

from numba import cuda, float32, int32, int64, uint32
from numba.cuda.types import float16

from m40llm.kernels.order import key_of
from m40llm.kernels.program import words
from m40llm.kernels.program.form import N_THREADS, Form
from m40llm.kernels.program.rows import rows_of
from m40llm.kernels.reduce import WARP_SIZE, warp_max, warp_sum
from m40llm.kernels.views import array_at, part_of

LOWEST: Final = -3.4e38  # as attention's: finite, so that exp(LOWEST - LOWEST) is 1
_UNSEEN: Final = 1 << 60  # elements that a view may have; what is written lies within the buffer


@cache
def _append_of(form: Form) -> Any:
    """append(w, first, second, row, jump, s, out): the results of `row` and of the row `jump`
    further on, which turn together."""
    head_dim, n_kv_heads = form.head_dim, form.n_kv_heads
    q_dim, kv_dim, rope_dim, n_seqs = form.q_dim, form.kv_dim, form.rope_dim, form.n_seqs
    n_angles = rope_dim // 2
    is_half = form.rope_layout == "half"

    @cuda.jit(device=True, forceinline=True)
    def append(w: Any, first: Any, second: Any, row: Any, jump: Any, s: Any, out: Any) -> None:
        pos = array_at(w[words.ROW_POS], (n_seqs,), int32)[s]
        if pos < 0:
            return
        row = uint32(row + w[words.FIRST_ROW])
        d = uint32(row % uint32(head_dim))
        if row < q_dim + kv_dim and d < rope_dim:
            pair = d if is_half else d >> uint32(1)
            at_angle = int64(pos) * n_angles + pair
            cos = array_at(w[words.COS], (_UNSEEN,), float32)[at_angle]
            sin = array_at(w[words.SIN], (_UNSEEN,), float32)[at_angle]
            first, second = first * cos - second * sin, first * sin + second * cos
        if row < q_dim:
            out[s, row] = first
            out[s, uint32(row + jump)] = second
            return
        row = uint32(row - q_dim)
        address = w[words.K_CACHE]
        if row >= kv_dim:
            row, address = uint32(row - kv_dim), w[words.V_CACHE]
        cache = array_at(address, (_UNSEEN,), float16)
        head = row // uint32(head_dim)
        seq = array_at(w[words.SEQ], (n_seqs,), int32)[s]
        at = (int64(seq) * n_kv_heads + head) * w[words.MAX_SEQ_LEN] + pos
        at = at * head_dim + int64(d)
        cache[at] = float16(first)
        cache[at + jump] = float16(second)

    return append


@cache
def finish_of(form: Form, n: int) -> Any:
    """finish(w, kind, result, panel, panel_end, n_rows, results, best, top, mass)
    -> (best, top, mass) of this thread's logits so far.

    n  rows of a group
    """
    n_seqs, n_results, half = form.n_seqs, n * form.n_seqs, n // 2
    append, find_rows, is_half = _append_of(form), rows_of(form, n), form.rope_layout == "half"

    @cuda.jit(device=True, forceinline=True)
    def finish(
        w: Any, kind: Any, result: Any, panel: Any, panel_end: Any, n_rows: Any, results: Any,
        best: Any, top: Any, mass: Any,
    ) -> Any:  # fmt: skip
        mine = uint32(cuda.threadIdx.x)
        group = int32(panel + mine // uint32(n_results))
        r = int32(mine % uint32(n_results) // uint32(n_seqs))
        s = int32(mine % uint32(n_seqs))
        out = array_at(w[words.OUT], (n_seqs, w[words.OUT_COLS]), float32)
        first, jump = find_rows(kind, n_rows, group)
        row = int32(first + r if r < half else first + r - half + jump)
        is_mine = group < panel_end and row < n_rows
        if is_mine and w[words.BIAS] != 0:
            result += array_at(w[words.BIAS], (n_rows,), float32)[row]
        if kind == words.SWIGLU or kind == words.APPEND:
            cuda.syncthreads()  # partial results have been added up
            results[mine] = result
            cuda.syncthreads()
            is_pair_apart = is_half or kind == words.SWIGLU
            is_first = r < half if is_pair_apart else r & 1 == 0
            if is_mine and is_first:
                second = results[uint32(mine + (half if is_pair_apart else 1) * n_seqs)]
                if kind == words.SWIGLU:
                    out[s, row] = result / (float32(1) + math.exp(-result)) * second
                else:
                    append(w, result, second, row, jump if is_pair_apart else int32(1), s, out)
        elif is_mine:
            if kind == words.ADD:
                result += out[s, row]
            out[s, row] = result
            if kind == words.LOGITS:
                array_at(w[words.RAW], (n_seqs, n_rows), float32)[s, row] = result
                best = max(best, key_of(result, row))
                higher = max(top, result)
                mass = mass * math.exp(top - higher) + math.exp(result - higher)
                top = higher
        return best, top, mass

    return finish


@cache
def gather_of(form: Form) -> Any:
    """gather(w, best, top, mass, pool): the block's into DecodeState.best and .mass, from its
    threads'."""
    n_seqs = form.n_seqs

    @cuda.jit(device=True, forceinline=True)
    def gather(w: Any, best: Any, top: Any, mass: Any, pool: Any) -> None:
        all_best = array_at(w[words.BEST], (n_seqs, cuda.gridDim.x), int64)
        all_mass = array_at(w[words.MASS], (n_seqs, cuda.gridDim.x, 2), float32)
        keys = part_of(pool, 0, N_THREADS, int64)
        tops = part_of(pool, 2 * N_THREADS, N_THREADS, float32)
        masses = part_of(pool, 3 * N_THREADS, N_THREADS, float32)
        cuda.syncthreads()
        mine = cuda.threadIdx.x
        keys[mine], tops[mine], masses[mine] = best, top, mass
        cuda.syncthreads()
        s, lane = mine // WARP_SIZE, mine % WARP_SIZE
        if s < n_seqs:  # thread t has results of sequence t % n_seqs alone
            key, highest, whole = int64(-1), float32(LOWEST), float32(0)
            for other in range(s + lane * n_seqs, N_THREADS, WARP_SIZE * n_seqs):
                key = max(key, keys[other])
                highest = max(highest, tops[other])
            key, highest = warp_max(key), warp_max(highest)
            for other in range(s + lane * n_seqs, N_THREADS, WARP_SIZE * n_seqs):
                whole += masses[other] * math.exp(tops[other] - highest)
            whole = warp_sum(whole)
            if lane == 0:
                all_best[s, cuda.blockIdx.x] = key
                all_mass[s, cuda.blockIdx.x, 0] = highest
                all_mass[s, cuda.blockIdx.x, 1] = whole

    return gather
