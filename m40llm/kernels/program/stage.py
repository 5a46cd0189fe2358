"""x of a product: taken from the exchange, into shared memory as staging.py lays it out.

    load_norm(w, first_col, n_quads, norms)                      before x is there
    take(x, epoch, first, n_quads, w, norms, t, staged, sums)    -> the thread's share of sum x^2

Every block does it for itself. With a norm, what is staged is x times the norm's weights, and the
results are multiplied by 1 / sqrt(mean x^2 + eps) in the end: so nobody waits for the mean. The
norm's weights of a thread's quads (fours of columns) are on their way into its registers while it
waits for x.
"""

from functools import cache
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as GGMLType
from numba import cuda, float32, int32, uint32

from m40llm.kernels.intrinsics import load_float4_readonly, store_float4_shared
from m40llm.kernels.planes import DENSE
from m40llm.kernels.program import words
from m40llm.kernels.program.exchange import look4, take4
from m40llm.kernels.program.form import IN_FLIGHT, N_THREADS, Pool
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


@cache
def _take_few_of(type: GGMLType, n_seqs: int) -> Any:
    """take of up to a quad a thread."""
    put = _put_of(type, n_seqs)

    @cuda.jit(device=True, forceinline=True)
    def take_few(
        x: Any, epoch: Any, first: Any, n_quads: Any, w: Any, norms: Any, t: Any,
        staged: Any, sums: Any,
    ) -> Any:  # fmt: skip
        quad = int32(cuda.threadIdx.x)
        x0, x1, x2, x3 = float32(0), float32(0), float32(0), float32(0)
        if quad < n_quads:
            x0, x1, x2, x3 = take4(x, int32(first + 4 * quad), epoch)
        share = (x0 * x0 + x1 * x1) + (x2 * x2 + x3 * x3)
        x0, x1, x2, x3 = _times_norm(w, norms, 0, x0, x1, x2, x3)
        put(x0, x1, x2, x3, quad, quad < n_quads, t, staged, sums)
        return share

    return take_few


@cache
def _take_many_of(type: GGMLType, n_seqs: int) -> Any:
    """take of any number, several of a thread's quads under way at a time."""
    put = _put_of(type, n_seqs)

    @cuda.jit(device=True, forceinline=True)
    def take_many(
        x: Any, epoch: Any, first: Any, n_quads: Any, w: Any, norms: Any, t: Any,
        staged: Any, sums: Any,
    ) -> Any:  # fmt: skip
        got = cuda.local.array((IN_FLIGHT, 4), float32)
        sum_sq, start = float32(0), int32(0)
        while start < n_quads:
            mine, is_waiting = int32(start + cuda.threadIdx.x), True
            while is_waiting:
                is_waiting = False
                for k in range(IN_FLIGHT):
                    quad = int32(mine + k * N_THREADS)
                    if quad < n_quads:
                        has_come, x0, x1, x2, x3 = look4(x, int32(first + 4 * quad), epoch)
                        got[k, 0], got[k, 1], got[k, 2], got[k, 3] = x0, x1, x2, x3
                        is_waiting = is_waiting or not has_come
            for k in range(IN_FLIGHT):
                quad, first_of_all = int32(mine + k * N_THREADS), int32(start + k * N_THREADS)
                if first_of_all < n_quads:  # the same for the whole block
                    x0, x1, x2, x3 = got[k, 0], got[k, 1], got[k, 2], got[k, 3]
                    if quad < n_quads:
                        sum_sq += (x0 * x0 + x1 * x1) + (x2 * x2 + x3 * x3)
                    x0, x1, x2, x3 = _times_norm(w, norms, k, x0, x1, x2, x3)
                    put(x0, x1, x2, x3, quad, quad < n_quads, t, staged, sums)
            start = int32(start + IN_FLIGHT * N_THREADS)
        return sum_sq

    return take_many


@cache
def take_of(type: GGMLType, n_seqs: int) -> Any:
    """take(x, epoch, first, n_quads, w, norms, t, staged, sums), by all threads: of sequence t,
    whose first number here is x's number `first`; -> the sum of the squares of what this thread
    has taken."""
    take_few, take_many = _take_few_of(type, n_seqs), _take_many_of(type, n_seqs)

    @cuda.jit(device=True, forceinline=True)
    def take(
        x: Any, epoch: Any, first: Any, n_quads: Any, w: Any, norms: Any, t: Any,
        staged: Any, sums: Any,
    ) -> Any:  # fmt: skip
        if n_quads <= N_THREADS:
            return take_few(x, epoch, first, n_quads, w, norms, t, staged, sums)
        return take_many(x, epoch, first, n_quads, w, norms, t, staged, sums)

    return take
