"""x of a product: taken from the exchange, into shared memory as staging.py lays it out.

    load_norm(w, first_col, n_quads, norms)    before x is there
    ask_x(x, first, start, n_quads, asked)     a first look at it
    take(x, epoch, first, n_quads, w, norms, t, asked, staged, sums)
                                               -> the thread's share of sum x^2

Every block does it for itself. With a norm, what is staged is x times the norm's weights, and the
results are multiplied by 1 / sqrt(mean x^2 + eps) in the end: so nobody waits for the mean. The
norm's weights of a thread's quads (fours of columns) are on their way into its registers while it
waits for x. Whoever is late finds x at the first look, which comes with all else that is loaded
before: a second look would be one more trip to memory.
"""

from functools import cache
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as GGMLType
from numba import cuda, float32, int32, uint32

from m40llm.kernels.intrinsics import load_float4_readonly, store_float4_shared, uint_as_float
from m40llm.kernels.planes import DENSE
from m40llm.kernels.program import words
from m40llm.kernels.program.exchange import has_arrived, look4
from m40llm.kernels.program.form import IN_FLIGHT, N_THREADS, Pool, max_stage_cols
from m40llm.kernels.reduce import FULL_MASK
from m40llm.kernels.unpack import LANES, RESULT_SCALE, STAGE_SCALE, factor
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


@cache
def _factors_of(type: GGMLType) -> Any:
    """factors(quad): of its four columns; see unpack.py."""
    n_groups, scale = LANES[type].n_groups, 1.0 if type in DENSE else STAGE_SCALE
    low0, low1, low2, low3 = (np.float32(scale * factor(type, 0, k)) for k in range(4))
    high0, high1, high2, high3 = (
        np.float32(scale * factor(type, n_groups - 1, k)) for k in range(4)
    )

    @cuda.jit(device=True, forceinline=True)
    def factors(quad: Any) -> Any:
        if uint32(quad) % uint32(n_groups) >= 4:
            return high0, high1, high2, high3
        return low0, low1, low2, low3

    return factors


@cuda.jit(device=True, forceinline=True)
def load_norm(w: Any, first_col: Any, n_quads: Any, norms: Any) -> None:
    """norms[k]: of the thread's quad number k of the stage, where there is a norm."""
    if w[words.NORM] != 0:
        norm = array_at(w[words.NORM], (UNSEEN,), float32)
        for k in range(IN_FLIGHT):
            quad = int32(cuda.threadIdx.x + k * N_THREADS)
            if quad < n_quads:
                n0, n1, n2, n3 = load_float4_readonly(norm, int32(first_col + 4 * quad))
                norms[k, 0], norms[k, 1], norms[k, 2], norms[k, 3] = n0, n1, n2, n3


@cache
def _put_of(type: GGMLType, n_seqs: int) -> Any:
    """put(x0, x1, x2, x3, quad, inside, t, staged, sums): a quad of sequence t, and its share of
    the sums, where its thread has one."""
    slot_of, shape, lane = _slot_of(type), Pool(type, n_seqs).shape, LANES[type]
    token_slots, token_sums, has_sums = shape.token_slots, shape.token_sums, type not in DENSE
    sum_groups = lane.n_groups // lane.n_halves
    factors = _factors_of(type)

    @cuda.jit(device=True, forceinline=True)
    def put(
        x0: Any, x1: Any, x2: Any, x3: Any, quad: Any, inside: Any, t: Any, staged: Any, sums: Any
    ) -> None:
        if inside:
            at = int32((t * token_slots + slot_of(quad)) * 4)
            f0, f1, f2, f3 = factors(quad)
            store_float4_shared(staged, at, f0 * x0, f1 * x1, f2 * x2, f3 * x3)
        if has_sums:
            total = float32(0)
            if inside:
                total = float32(RESULT_SCALE) * ((x0 + x1) + (x2 + x3))
            distance = 1
            while distance < sum_groups:
                total += cuda.shfl_xor_sync(FULL_MASK, total, distance)
                distance *= 2
            if inside and uint32(quad) % uint32(sum_groups) == 0:
                sums[uint32(t * token_sums + uint32(quad) // uint32(sum_groups))] = total

    return put


@cuda.jit(device=True, forceinline=True)
def _times_norm(w: Any, norms: Any, k: Any, x0: Any, x1: Any, x2: Any, x3: Any) -> Any:
    """The thread's quad number k, times the norm's weights where there is a norm."""
    if w[words.NORM] != 0:
        x0, x1, x2, x3 = x0 * norms[k, 0], x1 * norms[k, 1], x2 * norms[k, 2], x3 * norms[k, 3]
    return x0, x1, x2, x3


@cuda.jit(device=True, forceinline=True)
def ask_x(x: Any, first: Any, start: Any, n_quads: Any, asked: Any) -> None:
    """asked[k]: exchange words of the thread's quad number k from quad `start` on, arrived or not;
    the stage's first number is x's number `first`."""
    for k in range(IN_FLIGHT):
        quad = int32(start + cuda.threadIdx.x + k * N_THREADS)
        for i in range(8):
            asked[k, i] = 0
        if quad < n_quads:
            look4(x, int32(first + 4 * quad), asked, k)


@cache
def _take_round_of(type: GGMLType, n_seqs: int) -> Any:
    """take_round(...): the quads that ask_x(x, first, start, n_quads, asked) has asked for."""
    put = _put_of(type, n_seqs)

    @cuda.jit(device=True, forceinline=True)
    def take_round(
        x: Any, epoch: Any, first: Any, start: Any, n_quads: Any, w: Any, norms: Any, t: Any,
        asked: Any, staged: Any, sums: Any,
    ) -> Any:  # fmt: skip
        sum_sq = float32(0)
        for k in range(IN_FLIGHT):
            first_of_all = int32(start + k * N_THREADS)
            quad = int32(first_of_all + cuda.threadIdx.x)
            if first_of_all < n_quads:  # the same for the whole block
                is_there = quad < n_quads
                while is_there and not has_arrived(asked, k, epoch):
                    look4(x, int32(first + 4 * quad), asked, k)
                x0, x1 = uint_as_float(asked[k, 0]), uint_as_float(asked[k, 2])
                x2, x3 = uint_as_float(asked[k, 4]), uint_as_float(asked[k, 6])
                sum_sq += (x0 * x0 + x1 * x1) + (x2 * x2 + x3 * x3)
                if quad - (cuda.threadIdx.x & 31) < n_quads:  # the same for the whole warp
                    x0, x1, x2, x3 = _times_norm(w, norms, k, x0, x1, x2, x3)
                    put(x0, x1, x2, x3, quad, is_there, t, staged, sums)
        return sum_sq

    return take_round


@cache
def take_of(type: GGMLType, n_seqs: int) -> Any:
    """take(x, epoch, first, n_quads, w, norms, t, asked, staged, sums), by all threads, after
    ask_x(x, first, 0, n_quads, asked): of sequence t -> the sum of the squares of what this thread
    has taken. No loop around it: where one begins that loads, all that is under way is waited
    for."""
    take_round = _take_round_of(type, n_seqs)
    round_quads = IN_FLIGHT * N_THREADS
    n_rounds = max_stage_cols(n_seqs) // (4 * round_quads)
    assert n_rounds <= 2, f"{n_seqs} sequences: x is taken in two rounds"

    @cuda.jit(device=True, forceinline=True)
    def take(
        x: Any, epoch: Any, first: Any, n_quads: Any, w: Any, norms: Any, t: Any, asked: Any,
        staged: Any, sums: Any,
    ) -> Any:  # fmt: skip
        sum_sq = take_round(x, epoch, first, int32(0), n_quads, w, norms, t, asked, staged, sums)
        if n_rounds > 1 and n_quads > round_quads:
            ask_x(x, first, int32(round_quads), n_quads, asked)
            sum_sq += take_round(
                x, epoch, first, int32(round_quads), n_quads, w, norms, t, asked, staged, sums
            )
        return sum_sq

    return take
