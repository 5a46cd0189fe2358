"""x of a product: taken from the exchange, into shared memory as staging.py lays it out.

    load_norm(w, first_col, n_quads, norms)    before x is there
    ask_x(x, x_cols, first_col, start, n_quads, asked)    a first look at it
    take(x, epoch, x_cols, first_col, n_quads, n_padded, norms, asked, staged, sums, shares)
    put_squares(shares, n_quads, squares, adds)
    sum_squares(squares, s), norm_scale(w, total)    once they are there

Every block does it for itself, all sequences of a stage at a time. With a norm, what is staged is x
times the norm's weights, and the results are multiplied by 1 / sqrt(mean x^2 + eps) in the end: so
nobody waits for the mean. The norm's weights of a thread's quads (fours of columns) are on their
way into its registers while it waits for x. Whoever is late finds x at the first look, which comes
with all else that is loaded before: a second look would be one more trip to memory.

A stage's last span may be cut short: zeros fill it up to quad `n_padded`.
"""

import math
from functools import cache
from typing import Any

from gguf import GGMLQuantizationType as GGMLType
from numba import cuda, float32, int32, uint32

from m40llm.kernels.bits import uint_as_float
from m40llm.kernels.intrinsics import load_float4_readonly, store_float4_shared
from m40llm.kernels.program import words
from m40llm.kernels.program.code import word_of
from m40llm.kernels.program.exchange import has_arrived, look4
from m40llm.kernels.program.form import (
    N_THREADS,
    N_WARPS,
    NORM_QUADS,
    THREAD_QUADS,
    Pool,
    asked_quads,
    max_stage_cols,
)
from m40llm.kernels.reduce import FULL_MASK, WARP_SIZE, warp_sum
from m40llm.kernels.scales import has_offset, sum_factor
from m40llm.kernels.unpack import LANES, RESULT_SCALE, factors_of
from m40llm.kernels.views import UNSEEN, array_at


@cache
def _slot_of(type: GGMLType) -> Any:
    """Where four columns lie, in units of four floats."""
    shape = Pool(type, 1).shape
    n_groups, pitch = shape.n_groups, shape.pitch

    @cuda.jit(device=True, forceinline=True)
    def slot_of(quad: Any) -> Any:
        unit = uint32(uint32(quad) // uint32(n_groups))
        group = uint32(uint32(quad) % uint32(n_groups))
        return int32(((unit >> uint32(5)) * n_groups + group) * pitch + (unit & uint32(31)))

    return slot_of


def _quads_a_seq(n_seqs: int) -> int:
    """A thread's quads of a sequence, of those that it has any of."""
    return max(max_stage_cols(n_seqs) // 4 // N_THREADS, 1)


def n_shares(n_seqs: int) -> int:
    """Sequences that a thread has quads of."""
    return THREAD_QUADS // _quads_a_seq(n_seqs)


def warps_a_seq(n_seqs: int) -> int:
    """Warps that have quads of a sequence."""
    return min(max_stage_cols(n_seqs) // 4 // WARP_SIZE, N_WARPS)


@cache
def _quad_of(n_seqs: int) -> Any:
    """quad_of(k) -> (token, quad) of the thread's quad number k of a stage: sequence by sequence,
    each as wide as the widest stage."""
    stage_quads = max_stage_cols(n_seqs) // 4

    @cuda.jit(device=True, forceinline=True)
    def quad_of(k: Any) -> Any:
        number = uint32(cuda.threadIdx.x + k * N_THREADS)
        if n_seqs == 1:
            return int32(0), int32(number)
        return int32(number // uint32(stage_quads)), int32(number % uint32(stage_quads))

    return quad_of


@cuda.jit(device=True, forceinline=True)
def _of_warp(quad: Any) -> Any:
    """The first of the warp's quads, of which this thread has `quad`: what the warp decides by."""
    return int32(quad - int32(uint32(cuda.threadIdx.x) & uint32(31)))


@cache
def load_norm_of(n_seqs: int) -> Any:
    """load_norm(w, first_col, n_quads, norms): norms[k], float32[NORM_QUADS, 4], of the thread's
    quad number k of a sequence, which is the same for all sequences that it has; ones for none."""
    quad_of, n_norms = _quad_of(n_seqs), min(_quads_a_seq(n_seqs), NORM_QUADS)

    @cuda.jit(device=True, forceinline=True)
    def load_norm(w: Any, first_col: Any, n_quads: Any, norms: Any) -> None:
        for k in range(n_norms):
            for i in range(4):
                norms[k, i] = float32(1)
        if w[words.NORM] != 0:
            norm = array_at(w[words.NORM], (UNSEEN,), float32)
            for k in range(n_norms):
                _, quad = quad_of(k)
                if quad < n_quads:
                    n0, n1, n2, n3 = load_float4_readonly(norm, int32(first_col + 4 * quad))
                    norms[k, 0], norms[k, 1], norms[k, 2], norms[k, 3] = n0, n1, n2, n3

    return load_norm


@cache
def _put_of(type: GGMLType, n_seqs: int) -> Any:
    """put(x0, x1, x2, x3, quad, inside, t, staged, sums): a quad of sequence t, and its share of
    the sums, where its thread has one."""
    slot_of, shape, lane = _slot_of(type), Pool(type, n_seqs).shape, LANES[type]
    token_slots, token_sums, has_sums = shape.token_slots, shape.token_sums, has_offset(type)
    sum_groups = lane.n_groups // lane.n_halves
    factors, n_groups = factors_of(type), lane.n_groups
    sum_scale = sum_factor(type) * RESULT_SCALE

    @cuda.jit(device=True, forceinline=True)
    def put(
        x0: Any, x1: Any, x2: Any, x3: Any, quad: Any, inside: Any, t: Any, staged: Any, sums: Any
    ) -> None:
        if inside:
            at = int32((t * token_slots + slot_of(quad)) * 4)
            f0, f1, f2, f3 = factors(uint32(quad) % uint32(n_groups))
            store_float4_shared(staged, at, f0 * x0, f1 * x1, f2 * x2, f3 * x3)
        if has_sums:
            total = float32(0)
            if inside:
                total = float32(sum_scale) * ((x0 + x1) + (x2 + x3))
            distance = 1
            while distance < sum_groups:
                total += cuda.shfl_xor_sync(FULL_MASK, total, distance)
                distance *= 2
            if inside and uint32(quad) % uint32(sum_groups) == 0:
                sums[uint32(t * token_sums + uint32(quad) // uint32(sum_groups))] = total

    return put


@cache
def ask_x_of(n_seqs: int) -> Any:
    """ask_x(x, x_cols, first_col, first, n_quads, asked): asked[k], uint32[asked_quads, 8], becomes
    the exchange words of the thread's quad number first + k of the stage, arrived or not."""
    quad_of, n_asked = _quad_of(n_seqs), asked_quads(n_seqs)

    @cuda.jit(device=True, forceinline=True)
    def ask_x(
        x: Any, x_cols: Any, first_col: Any, first: Any, n_quads: Any, asked: Any
    ) -> None:  # fmt: skip
        for k in range(n_asked):
            token, quad = quad_of(first + k)
            for i in range(8):
                asked[k, i] = 0
            if quad < n_quads:
                look4(x, int32(token * x_cols + first_col + 4 * quad), asked, k)

    return ask_x


@cache
def _take_round_of(type: GGMLType, n_seqs: int) -> Any:
    """take_round(...): what ask_x(x, x_cols, first_col, first, n_quads, asked) has asked for."""
    put, quad_of, n_asked = _put_of(type, n_seqs), _quad_of(n_seqs), asked_quads(n_seqs)
    quads_a_seq = _quads_a_seq(n_seqs)
    n_norms, seq_width = min(quads_a_seq, NORM_QUADS), quads_a_seq * N_THREADS

    @cuda.jit(device=True, forceinline=True)
    def take_round(
        x: Any, epoch: Any, x_cols: Any, first_col: Any, first: Any, n_quads: Any, n_padded: Any,
        norms: Any, asked: Any, staged: Any, sums: Any, shares: Any,
    ) -> None:  # fmt: skip
        for k in range(n_asked):
            if int32((first + k) * N_THREADS % seq_width) < n_padded:  # the same for the block
                token, quad = quad_of(first + k)
                while quad < n_quads and not has_arrived(asked, k, epoch):
                    look4(x, int32(token * x_cols + first_col + 4 * quad), asked, k)
                x0, x1 = uint_as_float(asked[k, 0]), uint_as_float(asked[k, 2])
                x2, x3 = uint_as_float(asked[k, 4]), uint_as_float(asked[k, 6])
                shares[k // quads_a_seq] += (x0 * x0 + x1 * x1) + (x2 * x2 + x3 * x3)
                if _of_warp(quad) < n_padded:
                    x0, x1 = x0 * norms[k % n_norms, 0], x1 * norms[k % n_norms, 1]
                    x2, x3 = x2 * norms[k % n_norms, 2], x3 * norms[k % n_norms, 3]
                    put(x0, x1, x2, x3, quad, quad < n_padded, token, staged, sums)

    return take_round


@cache
def take_of(type: GGMLType, n_seqs: int) -> Any:
    """take(...), by all threads, after ask_x(x, x_cols, first_col, 0, n_quads, asked): the stage
    into shared memory; shares[j], float32[n_shares], of the thread's sequence number j: the sum of
    the squares of what it has taken. No loop around it: where one begins that loads, all that is
    under way is waited for."""
    take_round, ask_x, n_own = _take_round_of(type, n_seqs), ask_x_of(n_seqs), n_shares(n_seqs)
    n_asked = asked_quads(n_seqs)
    n_rounds = THREAD_QUADS // n_asked
    assert n_rounds <= 2, f"{n_seqs} sequences: x is taken in two rounds"

    @cuda.jit(device=True, forceinline=True)
    def take(
        x: Any, epoch: Any, x_cols: Any, first_col: Any, n_quads: Any, n_padded: Any,
        norms: Any, asked: Any, staged: Any, sums: Any, shares: Any,
    ) -> None:  # fmt: skip
        for j in range(n_own):
            shares[j] = float32(0)
        take_round(
            x, epoch, x_cols, first_col, 0, n_quads, n_padded,
            norms, asked, staged, sums, shares,
        )  # fmt: skip
        if n_rounds > 1 and n_padded > n_asked * N_THREADS:
            ask_x(x, x_cols, first_col, n_asked, n_quads, asked)
            take_round(
                x, epoch, x_cols, first_col, n_asked, n_quads, n_padded,
                norms, asked, staged, sums, shares,
            )  # fmt: skip

    return take


@cache
def put_squares_of(n_seqs: int) -> Any:
    """put_squares(shares, n_quads, squares, adds): the warps' sums of squares, [sequence][warp],
    beside those of the stages before where `adds`."""
    quad_of, n_own, quads_a_seq = _quad_of(n_seqs), n_shares(n_seqs), _quads_a_seq(n_seqs)
    n_warps = warps_a_seq(n_seqs)

    @cuda.jit(device=True, forceinline=True)
    def put_squares(shares: Any, n_quads: Any, squares: Any, adds: Any) -> None:
        for j in range(n_own):
            token, quad = quad_of(j * quads_a_seq)
            share = shares[j]
            if _of_warp(quad) < n_quads:
                share = warp_sum(share)
            if uint32(cuda.threadIdx.x) & uint32(31) == 0:
                warp = uint32(cuda.threadIdx.x) >> uint32(5)
                at = uint32(token) * uint32(N_WARPS) + warp % uint32(n_warps)
                squares[at] = share + (squares[at] if adds else float32(0))

    return put_squares


@cache
def sum_squares_of(n_seqs: int) -> Any:
    """sum_squares(squares, s): sum x^2 of sequence s, as far as the block has taken x."""
    n_warps = warps_a_seq(n_seqs)

    @cuda.jit(device=True, forceinline=True)
    def sum_squares(squares: Any, s: Any) -> Any:
        total = float32(0)
        for warp in range(n_warps):
            total += squares[uint32(s * N_WARPS + warp)]
        return total

    return sum_squares


@cuda.jit(device=True, forceinline=True)
def norm_scale(w: Any, total: Any) -> Any:
    """1 / sqrt(mean x^2 + eps), where sum x^2 is `total`."""
    eps = uint_as_float(uint32(word_of(w, words.EPS)))
    return float32(1) / math.sqrt(total / float32(word_of(w, words.N_COLS)) + eps)


def staging_of(type: GGMLType, n_seqs: int) -> tuple[Any, Any, Any, Any]:
    """(load_norm, ask_x, take, put_squares)"""
    return (
        *(load_norm_of(n_seqs), ask_x_of(n_seqs)),
        *(take_of(type, n_seqs), put_squares_of(n_seqs)),
    )
