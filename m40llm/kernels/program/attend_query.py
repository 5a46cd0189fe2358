"""The query of an attention, and the newest key and value: from the exchange into shared memory.

Where Q and K have norms, what comes has neither been normed nor turned: the block does both for
its heads of Q and for its K; of a norm of whole rows it takes them all. So blocks that share a head
do the same, small, work; and none waits for another one to have appended the newest key.
"""

import math
from functools import cache
from typing import Any

from numba import cuda, float32, int32, int64, uint32

from m40llm.kernels.bits import float2_to_half2, uint_as_float, within_half
from m40llm.kernels.contract import ceil_div
from m40llm.kernels.intrinsics import (
    load_float2_readonly,
    load_float4_readonly,
    store_float4_shared,
    store_uint2,
    store_uint2_shared,
)
from m40llm.kernels.program import words
from m40llm.kernels.program.attend_shape import tile_heads
from m40llm.kernels.program.code import word_of
from m40llm.kernels.program.exchange import take4
from m40llm.kernels.program.form import N_THREADS, N_WARPS, Form
from m40llm.kernels.reduce import WARP_SIZE, warp_sum
from m40llm.kernels.views import UNSEEN, array_at, part_of


@cache
def take_of(form: Form) -> Any:
    """take_query(w, qkv, epoch, s, pos, kv_head, first_head, end_head, inner, query, fresh,
    scratch): q of the tile's heads times `inner`, and the newest K and V as packed halves, into
    shared memory. Of each 8 elements of q, which one lane wants, the first four lie in a head's
    first half. scratch: shared, float32[tile_heads + 1, head_dim] and float32[2, N_WARPS], free
    again after a barrier."""
    return _take_plain_of(form) if form.qk_norm == "none" else _take_normed_of(form)


@cache
def _slot_of(head_dim: int) -> Any:
    """Where quad `of_head` of a query that begins at `first` lies, in units of four floats."""
    head_quads = head_dim // 4

    @cuda.jit(device=True, forceinline=True)
    def slot_of(first: Any, of_head: Any) -> Any:
        half = uint32(of_head) & uint32(1)
        slot = uint32(first) + (uint32(of_head) >> uint32(1))
        return int32(slot + half * uint32(head_quads // 2))

    return slot_of


@cuda.jit(device=True, forceinline=True)
def _put_halves(fresh: Any, quad: Any, x0: Any, x1: Any, x2: Any, x3: Any) -> None:
    """Four elements of K or V, as the cache has them."""
    low = float2_to_half2(within_half(x0), within_half(x1))
    high = float2_to_half2(within_half(x2), within_half(x3))
    store_uint2_shared(fresh, int32(2 * quad), low, high)


@cache
def _take_plain_of(form: Form) -> Any:
    """take_query of Q and K that come as they are."""
    head_dim, n_heads = form.head_dim, tile_heads(form)
    head_quads, q_quads = head_dim // 4, n_heads * head_dim // 4
    row, slot_of = form.q_dim + 2 * form.kv_dim, _slot_of(form.head_dim)
    k_first, v_first = form.q_dim, form.q_dim + form.kv_dim

    @cuda.jit(device=True, forceinline=True)
    def take_query(
        w: Any, qkv: Any, epoch: Any, s: Any, pos: Any, kv_head: Any, first_head: Any,
        end_head: Any, inner: Any, query: Any, fresh: Any, scratch: Any,
    ) -> None:  # fmt: skip
        quad, first_row = uint32(cuda.threadIdx.x), int32(s * row)
        of_head = int32(quad % uint32(head_quads))
        if quad < q_quads:
            head = int32(first_head + int32(quad // uint32(head_quads)))
            head = min(head, int32(end_head - 1))
            at = int32(first_row + int32(head * head_dim + 4 * of_head))
            x0, x1, x2, x3 = take4(qkv, at, epoch)
            slot = slot_of(uint32(quad) - uint32(of_head), of_head)
            store_float4_shared(
                query, int32(4 * slot), inner * x0, inner * x1, inner * x2, inner * x3
            )
        elif quad < q_quads + 2 * head_quads:
            quad = uint32(quad - uint32(q_quads))
            first = int32(k_first if quad < head_quads else v_first)
            at = int32(first_row + int32(first + int32(kv_head * head_dim + 4 * of_head)))
            x0, x1, x2, x3 = take4(qkv, at, epoch)
            _put_halves(fresh, quad, x0, x1, x2, x3)

    return take_query


@cache
def _turn_of(form: Form) -> Any:
    """turn(angles, pos, d) -> (cos, sin, other): element d of a head becomes x[d] cos + x[other]
    sin, where the sign is in sin. d and `other` are within the head."""
    n_angles, rope_dim, is_half = form.rope_dim // 2, form.rope_dim, form.rope_layout == "half"

    @cuda.jit(device=True, forceinline=True)
    def turn(angles: Any, pos: Any, d: Any) -> Any:
        cos, sin, other = float32(1), float32(0), uint32(d)
        if uint32(d) < rope_dim:
            if is_half:
                is_first = uint32(d) < n_angles
                angle = uint32(d) if is_first else uint32(uint32(d) - uint32(n_angles))
                other = uint32(angle + uint32(n_angles)) if is_first else angle
            else:
                is_first = uint32(d) & uint32(1) == 0
                angle, other = uint32(d) >> uint32(1), uint32(d) ^ uint32(1)
            at = 2 * (int64(pos) * n_angles + int64(angle))
            cos, sin = load_float2_readonly(angles, at)
            sin = -sin if is_first else sin
        return cos, sin, other

    return turn


@cache
def _row_squares_of(form: Form) -> Any:
    """put_squares(qkv, epoch, s, sums): each warp's share of the sum of squares of all of Q, and of
    K, into shared float32[2, N_WARPS]; by all threads."""
    q_dim, n_all, row = form.q_dim, form.q_dim + form.kv_dim, form.q_dim + 2 * form.kv_dim

    @cuda.jit(device=True, forceinline=True)
    def put_squares(qkv: Any, epoch: Any, s: Any, sums: Any) -> None:
        of_q, of_k, thread = float32(0), float32(0), int32(cuda.threadIdx.x)
        for c in range(4 * thread, n_all, 4 * N_THREADS):
            x0, x1, x2, x3 = take4(qkv, int32(s * row + c), epoch)
            share = (x0 * x0 + x1 * x1) + (x2 * x2 + x3 * x3)
            if c < q_dim:
                of_q += share
            else:
                of_k += share
        of_q, of_k = warp_sum(of_q), warp_sum(of_k)
        if thread & 31 == 0:
            sums[uint32(thread >> 5)] = of_q
            sums[uint32(N_WARPS + (thread >> 5))] = of_k
        cuda.syncthreads()

    return put_squares


@cache
def _put_value_of(head_dim: int) -> Any:
    """put_value(qkv, epoch, at, lane, fresh): the newest value, as it comes, by a warp."""
    head_quads = head_dim // 4

    @cuda.jit(device=True, forceinline=True)
    def put_value(qkv: Any, epoch: Any, at: Any, lane: Any, fresh: Any) -> None:
        for quad in range(lane, head_quads, WARP_SIZE):
            x0, x1, x2, x3 = take4(qkv, int32(at + 4 * quad), epoch)
            _put_halves(fresh, int32(head_quads + quad), x0, x1, x2, x3)

    return put_value


@cache
def _take_normed_of(form: Form) -> Any:
    """take_query of Q and K that are normed and turned here: a head a warp; those of Q, K's, V's.
    The mean square is of a head or of all. What a lane multiplies by is on its way while it waits.
    A head times the norm's weights meets in `scratch`; the root of the mean comes last.
    """
    head_dim, n_heads = form.head_dim, tile_heads(form)
    head_quads, n_quads = head_dim // 4, ceil_div(head_dim // 4, WARP_SIZE)
    row, slot_of, turn = form.q_dim + 2 * form.kv_dim, _slot_of(form.head_dim), _turn_of(form)
    k_first, v_first = form.q_dim, form.q_dim + form.kv_dim
    is_row, q_dim, kv_dim = form.qk_norm == "row", form.q_dim, form.kv_dim
    put_squares, put_value = _row_squares_of(form), _put_value_of(head_dim)
    sums_at = (n_heads + 1) * head_dim

    @cuda.jit(device=True, forceinline=True)
    def take_query(
        w: Any, qkv: Any, epoch: Any, s: Any, pos: Any, kv_head: Any, first_head: Any,
        end_head: Any, inner: Any, query: Any, fresh: Any, scratch: Any,
    ) -> None:  # fmt: skip
        x = cuda.local.array((n_quads, 4), float32)
        weight = cuda.local.array((n_quads, 4), float32)
        cos = cuda.local.array((n_quads, 4), float32)
        sin = cuda.local.array((n_quads, 4), float32)
        other = cuda.local.array((n_quads, 4), uint32)
        thread = uint32(cuda.threadIdx.x)
        warp, lane = int32(thread >> uint32(5)), int32(thread & uint32(31))
        sums = part_of(scratch, sums_at, 2 * N_WARPS, float32)
        if is_row:
            put_squares(qkv, epoch, s, sums)
        if warp < n_heads + 1:
            is_query, place = warp < n_heads, max(pos, int32(0))
            head = min(int32(first_head + warp), int32(end_head - 1))
            of_row = int32(head * head_dim if is_query else kv_head * head_dim)
            first = of_row if is_query else int32(k_first + of_row)
            norm_first = of_row if is_row else int32(0)
            norm = array_at(w[words.Q_NORM if is_query else words.K_NORM], (UNSEEN,), float32)
            angles = array_at(w[words.ANGLES], (UNSEEN,), float32)
            for k in range(n_quads):
                quad = min(int32(lane + k * WARP_SIZE), int32(head_quads - 1))
                n0, n1, n2, n3 = load_float4_readonly(norm, int32(norm_first + 4 * quad))
                weight[k, 0], weight[k, 1], weight[k, 2], weight[k, 3] = n0, n1, n2, n3
                for i in range(4):
                    cos[k, i], sin[k, i], other[k, i] = turn(angles, place, int32(4 * quad + i))
            share = float32(0)
            for k in range(n_quads):
                quad = int32(lane + k * WARP_SIZE)
                if quad < head_quads:
                    x0, x1, x2, x3 = take4(qkv, int32(s * row + first + 4 * quad), epoch)
                    share += (x0 * x0 + x1 * x1) + (x2 * x2 + x3 * x3)
                    x0, x1 = x0 * weight[k, 0], x1 * weight[k, 1]
                    x2, x3 = x2 * weight[k, 2], x3 * weight[k, 3]
                    x[k, 0], x[k, 1], x[k, 2], x[k, 3] = x0, x1, x2, x3
                    store_float4_shared(scratch, int32(warp * head_dim + 4 * quad), x0, x1, x2, x3)
            eps = uint_as_float(uint32(word_of(w, words.EPS)))
            mean = warp_sum(share) / float32(head_dim)
            if is_row:
                of_all, sums_first = float32(0), uint32(0 if is_query else N_WARPS)
                for other_warp in range(N_WARPS):
                    of_all += sums[uint32(sums_first + uint32(other_warp))]
                mean = of_all / float32(q_dim if is_query else kv_dim)
            scale = float32(1) / math.sqrt(mean + eps)
            cuda.syncwarp()
            for k in range(n_quads):
                quad = int32(lane + k * WARP_SIZE)
                if quad < head_quads:
                    for i in range(4):
                        there = scratch[uint32(uint32(warp * head_dim) + other[k, i])]
                        x[k, i] = scale * (x[k, i] * cos[k, i] + there * sin[k, i])
                    if is_query:
                        slot = slot_of(int32(warp * head_quads), quad)
                        store_float4_shared(
                            query, int32(4 * slot),
                            inner * x[k, 0], inner * x[k, 1], inner * x[k, 2], inner * x[k, 3],
                        )  # fmt: skip
                    else:
                        _put_halves(fresh, quad, x[k, 0], x[k, 1], x[k, 2], x[k, 3])
        elif warp == n_heads + 1:
            put_value(qkv, epoch, int32(s * row + v_first + kv_head * head_dim), lane, fresh)

    return take_query


@cache
def append_of(form: Form) -> Any:
    """append(k_cache, v_cache, at, fresh): the newest K and V to the cache, at element `at`."""
    head_quads = form.head_dim // 4

    @cuda.jit(device=True, forceinline=True)
    def append(k_cache: Any, v_cache: Any, at: Any, fresh: Any) -> None:
        quad = int32(cuda.threadIdx.x)
        if quad < head_quads:
            store_uint2(k_cache, at + 4 * quad, fresh[2 * quad], fresh[2 * quad + 1])
        elif quad < 2 * head_quads:
            word = at + 4 * (quad - head_quads)
            store_uint2(v_cache, word, fresh[2 * quad], fresh[2 * quad + 1])

    return append
