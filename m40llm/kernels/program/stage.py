"""x of a product: taken from the exchange, into shared memory as staging.py lays it out.

    prepare(norm, first_col, n_quads, staged)                       before x is there
    take(x, epoch, first, n_quads, is_normed, t, staged, sums)      -> the thread's share of sum x^2

Every block does it for itself. With a norm, what is staged is x times the norm's weights, and the
results are multiplied by 1 / sqrt(mean x^2 + eps) in the end: so nobody waits for the mean.
`prepare` leaves the norm's weight, times the power of two that unpack.py asks for, where the number
will lie. Both go through the stage with the same thread for each number.
"""

from functools import cache
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as GGMLType
from numba import cuda, float32, int32, uint32

from m40llm.kernels.intrinsics import (
    load_float4_readonly,
    load_float4_shared,
    store_float4_shared,
)
from m40llm.kernels.planes import DENSE
from m40llm.kernels.program.exchange import look4, take4
from m40llm.kernels.program.form import N_THREADS, Pool
from m40llm.kernels.reduce import FULL_MASK
from m40llm.kernels.unpack import LANES, RESULT_SCALE, STAGE_SCALE, factor

_IN_FLIGHT = 2  # quads of x that a thread waits for at a time


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
def _factors_of(type: GGMLType, scale: float, power: int) -> Any:
    """factors(quad): of its four columns, scale * factor ** power; see unpack.py."""
    n_groups = LANES[type].n_groups
    low0, low1, low2, low3 = (np.float32(scale * factor(type, 0, k) ** power) for k in range(4))
    high0, high1, high2, high3 = (
        np.float32(scale * factor(type, n_groups - 1, k) ** power) for k in range(4)
    )

    @cuda.jit(device=True, forceinline=True)
    def factors(quad: Any) -> Any:
        if uint32(quad) % uint32(n_groups) >= 4:
            return high0, high1, high2, high3
        return low0, low1, low2, low3

    return factors


@cache
def prepare_of(type: GGMLType, n_seqs: int) -> Any:
    """prepare(norm, first_col, n_quads, staged), by all threads."""
    slot_of, token_slots = _slot_of(type), Pool(type, n_seqs).shape.token_slots
    factors = _factors_of(type, 1.0 if type in DENSE else STAGE_SCALE, 1)

    @cuda.jit(device=True, forceinline=True)
    def prepare(norm: Any, first_col: Any, n_quads: Any, staged: Any) -> None:
        quad = int32(cuda.threadIdx.x)
        while quad < n_quads:
            n0, n1, n2, n3 = load_float4_readonly(norm, int32(first_col + 4 * quad))
            f0, f1, f2, f3 = factors(quad)
            slot = slot_of(quad)
            for t in range(n_seqs):
                at = int32((t * token_slots + slot) * 4)
                store_float4_shared(staged, at, n0 * f0, n1 * f1, n2 * f2, n3 * f3)
            quad = int32(quad + N_THREADS)

    return prepare


@cache
def _put_of(type: GGMLType, n_seqs: int) -> Any:
    """put(x0, x1, x2, x3, is_normed, quad, inside, t, staged, sums): a quad of sequence t, and its
    share of the sums, where its thread has one."""
    slot_of, shape, lane = _slot_of(type), Pool(type, n_seqs).shape, LANES[type]
    token_slots, token_sums, has_sums = shape.token_slots, shape.token_sums, type not in DENSE
    sum_groups = lane.n_groups // lane.n_halves
    factors = _factors_of(type, STAGE_SCALE if has_sums else 1.0, 1)
    sum_factors = _factors_of(type, RESULT_SCALE / STAGE_SCALE, -1)

    @cuda.jit(device=True, forceinline=True)
    def put(
        x0: Any, x1: Any, x2: Any, x3: Any, is_normed: Any, quad: Any, inside: Any, t: Any,
        staged: Any, sums: Any,
    ) -> None:  # fmt: skip
        total = float32(0)
        if inside:
            at = int32((t * token_slots + slot_of(quad)) * 4)
            if is_normed:
                f0, f1, f2, f3 = load_float4_shared(staged, at)
            else:
                f0, f1, f2, f3 = factors(quad)
            x0, x1, x2, x3 = f0 * x0, f1 * x1, f2 * x2, f3 * x3
            store_float4_shared(staged, at, x0, x1, x2, x3)
            if has_sums:
                f0, f1, f2, f3 = sum_factors(quad)
                total = (f0 * x0 + f1 * x1) + (f2 * x2 + f3 * x3)
        if has_sums:
            distance = 1
            while distance < sum_groups:
                total += cuda.shfl_xor_sync(FULL_MASK, total, distance)
                distance *= 2
            if inside and uint32(quad) % uint32(sum_groups) == 0:
                sums[uint32(t * token_sums + uint32(quad) // uint32(sum_groups))] = total

    return put


@cache
def _take_few_of(type: GGMLType, n_seqs: int) -> Any:
    """take of up to a quad a thread."""
    put = _put_of(type, n_seqs)

    @cuda.jit(device=True, forceinline=True)
    def take_few(
        x: Any, epoch: Any, first: Any, n_quads: Any, is_normed: Any, t: Any,
        staged: Any, sums: Any,
    ) -> Any:  # fmt: skip
        quad = int32(cuda.threadIdx.x)
        x0, x1, x2, x3 = float32(0), float32(0), float32(0), float32(0)
        if quad < n_quads:
            x0, x1, x2, x3 = take4(x, int32(first + 4 * quad), epoch)
        put(x0, x1, x2, x3, is_normed, quad, quad < n_quads, t, staged, sums)
        return (x0 * x0 + x1 * x1) + (x2 * x2 + x3 * x3)

    return take_few


@cache
def _take_many_of(type: GGMLType, n_seqs: int) -> Any:
    """take of any number, several of a thread's quads under way at a time."""
    put = _put_of(type, n_seqs)

    @cuda.jit(device=True, forceinline=True)
    def take_many(
        x: Any, epoch: Any, first: Any, n_quads: Any, is_normed: Any, t: Any,
        staged: Any, sums: Any,
    ) -> Any:  # fmt: skip
        got = cuda.local.array((_IN_FLIGHT, 4), float32)
        sum_sq, start = float32(0), int32(0)
        while start < n_quads:
            mine, is_waiting = int32(start + cuda.threadIdx.x), True
            while is_waiting:
                is_waiting = False
                for k in range(_IN_FLIGHT):
                    quad = int32(mine + k * N_THREADS)
                    if quad < n_quads:
                        has_come, x0, x1, x2, x3 = look4(x, int32(first + 4 * quad), epoch)
                        got[k, 0], got[k, 1], got[k, 2], got[k, 3] = x0, x1, x2, x3
                        is_waiting = is_waiting or not has_come
            for k in range(_IN_FLIGHT):
                quad, first_of_all = int32(mine + k * N_THREADS), int32(start + k * N_THREADS)
                if first_of_all < n_quads:  # the same for the whole block
                    x0, x1, x2, x3 = got[k, 0], got[k, 1], got[k, 2], got[k, 3]
                    if quad < n_quads:
                        sum_sq += (x0 * x0 + x1 * x1) + (x2 * x2 + x3 * x3)
                    put(x0, x1, x2, x3, is_normed, quad, quad < n_quads, t, staged, sums)
            start = int32(start + _IN_FLIGHT * N_THREADS)
        return sum_sq

    return take_many


@cache
def take_of(type: GGMLType, n_seqs: int) -> Any:
    """take(x, epoch, first, n_quads, is_normed, t, staged, sums), by all threads: of sequence t,
    whose first number here is x's number `first`; -> the sum of the squares of what this thread
    has taken."""
    take_few, take_many = _take_few_of(type, n_seqs), _take_many_of(type, n_seqs)

    @cuda.jit(device=True, forceinline=True)
    def take(
        x: Any, epoch: Any, first: Any, n_quads: Any, is_normed: Any, t: Any,
        staged: Any, sums: Any,
    ) -> Any:  # fmt: skip
        if n_quads <= N_THREADS:
            return take_few(x, epoch, first, n_quads, is_normed, t, staged, sums)
        return take_many(x, epoch, first, n_quads, is_normed, t, staged, sums)

    return take
