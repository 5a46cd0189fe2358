"""Attention over the KV cache as an instruction: blocks share sequences, KV heads and key ranges.

The block works as one of attention_decode.py does, with 16 warps; see there for how. The keys
of the first two passes are under way before the query has arrived, and the next pass's always. The
newest key and value come with the query, through the exchange; the block whose range they end
rounds them to FP16 and appends them. The cache is written in this very launch, so it is not loaded
through the read-only cache. How many splits a sequence has depends on its length alone, and on the
grid.

over the size law: `attention` is one function so that keys, queries and sums stay in registers.
"""

import math
from functools import cache
from typing import Any, Final

from numba import cuda, float32, int32, int64, uint32
from numba.cuda.types import float16

from m40llm.kernels.attention_common import HALVES_PER_LOAD, LOWEST, NEGATIVE_INFINITY
from m40llm.kernels.attention_keys import KEYS_IN_FLIGHT, keys_a_pass, lanes_per_key
from m40llm.kernels.attention_merge import MAX_SPLITS, scatter_warp_of, scattered
from m40llm.kernels.bits import float2_to_half2, half2_to_float2, uint_as_float, within_half
from m40llm.kernels.contract import ceil_div
from m40llm.kernels.intrinsics import (
    load_float4_shared,
    load_uint4,
    load_uint4_shared,
    store_float4_shared,
    store_uint2,
    store_uint2_shared,
)
from m40llm.kernels.program import words
from m40llm.kernels.program.attend_splits import give_splits_of, part_row_of
from m40llm.kernels.program.code import epoch_of, word_of
from m40llm.kernels.program.exchange import give2, take4
from m40llm.kernels.program.form import N_THREADS, N_WARPS, Form
from m40llm.kernels.reduce import FULL_MASK, WARP_SIZE, scatter_sums, warp_max, warp_sum
from m40llm.kernels.views import UNSEEN, array_at, part_of

KEYS_UNIT: Final = 32  # of which a split's keys are a multiple
MIN_PASSES: Final = 2  # that a split takes: below, merging costs more than it saves
_LAG: Final = 16.0  # of a reference behind the highest score, in units of ln 2
_MAX_HEADS: Final = 2  # of a tile: four would be faster for long contexts, slower for short ones


def tile_heads(form: Form) -> int:
    """Heads that share a load of K and V: a power of two, of which some may be too many; as many
    as find room in shared memory when warps merge."""
    n_heads = min(1 << (form.n_heads // form.n_kv_heads - 1).bit_length(), _MAX_HEADS)
    while n_heads > 1 and _pool_floats(n_heads, form.head_dim) > form.pool_floats:
        n_heads //= 2
    return n_heads


def _merged_floats(n_heads: int, head_dim: int) -> int:
    """What warps merge: a sum, its maximum and its total of each, and the last two of all."""
    return n_heads * (N_WARPS * (head_dim + 2) + 2)


def _pool_floats(n_heads: int, head_dim: int) -> int:
    """The query, the newest key and value, then what warps merge."""
    return n_heads * head_dim + head_dim + _merged_floats(n_heads, head_dim)


def tiles_a_group(form: Form) -> int:
    """Tiles of heads that share a KV head."""
    return ceil_div(form.n_heads // form.n_kv_heads, tile_heads(form))


def split_shape(form: Form, n_blocks: int) -> tuple[int, int, int, int, int]:
    """Of `partial`: [n_seqs, n_heads, n_splits, head_dim + 2] numbers, in exchange words."""
    n_tiles = form.n_kv_heads * tiles_a_group(form)
    n_splits = max(1, min(n_blocks // (n_tiles * form.n_seqs), MAX_SPLITS))
    return form.n_seqs, form.n_heads, n_splits, form.head_dim + 2, 2


@cache
def split_of_keys(block_keys: int) -> Any:
    """split_of(n_keys, most_splits) -> (n_splits, keys of a split but the last). block_keys: a
    pass's. Few keys are one split, with no division."""
    least_keys = MIN_PASSES * block_keys
    assert least_keys % KEYS_UNIT == 0

    @cuda.jit(device=True, forceinline=True)
    def split_of(n_keys: Any, most_splits: Any) -> Any:
        n_splits, split_keys = int32(min(n_keys, 1)), int32(least_keys)
        if n_keys > least_keys:
            most = uint32(most_splits)
            split_keys = int32(uint32(uint32(n_keys) + most - uint32(1)) // most)
            split_keys = int32(int32(split_keys + KEYS_UNIT - 1) & ~(KEYS_UNIT - 1))
            split_keys = max(split_keys, int32(least_keys))
            some = uint32(split_keys)
            n_splits = int32(uint32(uint32(n_keys) + some - uint32(1)) // some)
        return n_splits, split_keys

    return split_of


@cache
def _load_keys_of(head_dim: int) -> Any:
    """load_keys(k_cache, v_cache, base, key, warp_key, last_key, k_halves, v_halves): a pass's,
    unless the warp's first one is beyond the last."""
    keys_a_load = WARP_SIZE // lanes_per_key(head_dim)

    @cuda.jit(device=True, forceinline=True)
    def load_keys(
        k_cache: Any, v_cache: Any, base: Any, key: Any, warp_key: Any, last_key: Any,
        k_halves: Any, v_halves: Any,
    ) -> None:  # fmt: skip
        if warp_key > last_key:
            return
        for load in range(KEYS_IN_FLIGHT):
            here = int32(min(int32(key + load * keys_a_load), last_key))
            at = base + int64(here) * head_dim
            k0, k1, k2, k3 = load_uint4(k_cache, at)
            k_halves[load, 0], k_halves[load, 1] = k0, k1
            k_halves[load, 2], k_halves[load, 3] = k2, k3
            v0, v1, v2, v3 = load_uint4(v_cache, at)
            v_halves[load, 0], v_halves[load, 1] = v0, v1
            v_halves[load, 2], v_halves[load, 3] = v2, v3

    return load_keys


@cache
def _take_of(form: Form) -> Any:
    """take_query(qkv, epoch, s, kv_head, first_head, end_head, inner, query, fresh): q of the
    tile's heads times `inner`, and the newest K and V as packed halves, into shared memory. Of each
    8 elements of q, which one lane wants, the first four lie in a head's first half."""
    head_dim, n_heads = form.head_dim, tile_heads(form)
    head_quads, q_quads = head_dim // 4, n_heads * head_dim // 4
    row = form.q_dim + 2 * form.kv_dim
    k_first, v_first = form.q_dim, form.q_dim + form.kv_dim

    @cuda.jit(device=True, forceinline=True)
    def take_query(
        qkv: Any, epoch: Any, s: Any, kv_head: Any, first_head: Any, end_head: Any, inner: Any,
        query: Any, fresh: Any,
    ) -> None:  # fmt: skip
        quad, first_row = uint32(cuda.threadIdx.x), int32(s * row)
        of_head = int32(quad % uint32(head_quads))
        if quad < q_quads:
            head = int32(first_head + int32(quad // uint32(head_quads)))
            head = min(head, int32(end_head - 1))
            at = int32(first_row + int32(head * head_dim + 4 * of_head))
            x0, x1, x2, x3 = take4(qkv, at, epoch)
            half = uint32(of_head) & uint32(1)
            slot = uint32(quad) - uint32(of_head) + (uint32(of_head) >> uint32(1))
            slot = int32(slot + half * uint32(head_quads // 2))
            store_float4_shared(
                query, int32(4 * slot), inner * x0, inner * x1, inner * x2, inner * x3
            )
        elif quad < q_quads + 2 * head_quads:
            quad = uint32(quad - uint32(q_quads))
            first = int32(k_first if quad < head_quads else v_first)
            at = int32(first_row + int32(first + int32(kv_head * head_dim + 4 * of_head)))
            x0, x1, x2, x3 = take4(qkv, at, epoch)
            low = float2_to_half2(within_half(x0), within_half(x1))
            high = float2_to_half2(within_half(x2), within_half(x3))
            store_uint2_shared(fresh, int32(2 * quad), low, high)

    return take_query


@cache
def _append_of(form: Form) -> Any:
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


@cache
def _of_score_of(n_lanes: int, n_heads: int) -> Any:
    """of_score(values, number, first_lane): `values` of score `number` of a pass, from the lane of
    the group, which begins with first_lane, that has this score."""
    n_own, lanes_a_score = _own_scores(n_lanes, n_heads), _lanes_a_score(n_lanes, n_heads)

    @cuda.jit(device=True, forceinline=True)
    def of_score(values: Any, number: Any, first_lane: Any) -> Any:
        lane = int32(first_lane + int32(number // n_own * lanes_a_score))
        return cuda.shfl_sync(FULL_MASK, values[number % n_own], lane)

    return of_score


@cache
def _soften_of(n_lanes: int, n_heads: int) -> Any:
    """soften(score, reference, total, mixed): a lane's own scores of a pass become weights
    exp2(score - reference), and are added to `total`.

    References are those of the keys' group of lanes, one for each head, and lag behind the highest
    score so far: sums are rescaled only where a weight would exceed 2^_LAG, which is seldom.
    """
    n_own, of_score = _own_scores(n_lanes, n_heads), _of_score_of(n_lanes, n_heads)
    # As far apart are lanes that have scores of one head; none do where a lane has all of a key's.
    head_lanes = n_heads // n_own * _lanes_a_score(n_lanes, n_heads) or n_lanes

    @cuda.jit(device=True, forceinline=True)
    def soften(score: Any, reference: Any, total: Any, mixed: Any) -> None:
        exceeds = False
        for i in range(n_own):
            exceeds = exceeds or score[i] > reference[i] + float32(_LAG)
        if cuda.any_sync(FULL_MASK, exceeds):
            lane = int32(cuda.threadIdx.x & 31)
            first_lane = int32(lane & ~(n_lanes - 1))
            shrink = cuda.local.array(n_own, float32)
            for i in range(n_own):
                top = max(reference[i], score[i])
                for j in range(i % n_heads, n_own, n_heads):
                    top = max(top, score[j])
                distance = head_lanes
                while distance < n_lanes:
                    top = max(top, cuda.shfl_xor_sync(FULL_MASK, top, distance))
                    distance *= 2
                shrink[i] = math.exp2(reference[i] - top)
                reference[i] = top
                total[i] *= shrink[i]
            for head in range(n_heads):
                factor = of_score(shrink, head, first_lane)
                for d in range(HALVES_PER_LOAD):
                    mixed[head, d] *= factor
        for i in range(n_own):
            score[i] = math.exp2(score[i] - reference[i])
            total[i] += score[i]

    return soften


def _own_scores(n_lanes: int, n_heads: int) -> int:
    """Scores of a pass that a lane has, once the lanes of a key have added up."""
    return max(KEYS_IN_FLIGHT * n_heads // n_lanes, 1)


def _lanes_a_score(n_lanes: int, n_heads: int) -> int:
    """Lanes that have the same score: neighbours, where there are more lanes than scores."""
    return max(n_lanes // (KEYS_IN_FLIGHT * n_heads), 1)


@cache
def _see_keys_of(form: Form) -> Any:
    """see_keys(...): all keys of the block's range, into (highest, total, mixed); the first two
    passes' keys are under way.

    Each group of lanes that have a key has KEYS_IN_FLIGHT of them a pass, and scores them for each
    head: number load * n_heads + head. The lanes add up so that each has its own scores only.
    """
    head_dim, n_heads = form.head_dim, tile_heads(form)
    n_lanes = lanes_per_key(head_dim)
    keys_a_load, block_keys = WARP_SIZE // n_lanes, keys_a_pass(head_dim, N_WARPS)
    head_words, n_scores = head_dim // 2, KEYS_IN_FLIGHT * n_heads
    n_own, lanes_a_score = _own_scores(n_lanes, n_heads), _lanes_a_score(n_lanes, n_heads)
    of_score = _of_score_of(n_lanes, n_heads)
    load_keys, soften = _load_keys_of(head_dim), _soften_of(n_lanes, n_heads)
    add_up, is_padded = scatter_sums(n_scores, 1, n_lanes), n_lanes * HALVES_PER_LOAD > head_dim

    @cuda.jit(device=True, forceinline=True)
    def see_keys(
        k_cache: Any, v_cache: Any, base: Any, first_key: Any, end: Any, pos: Any, d: Any,
        query: Any, fresh: Any, k_now: Any, v_now: Any, k_then: Any, v_then: Any,
        highest: Any, total: Any, mixed: Any,
    ) -> None:  # fmt: skip
        score = cuda.local.array(n_scores, float32)
        weight = cuda.local.array(n_heads, float32)
        keys = cuda.local.array((KEYS_IN_FLIGHT, 4), float32)
        reference = cuda.local.array(n_own, float32)
        part = cuda.local.array(n_own, float32)
        for i in range(n_own):
            reference[i], part[i] = LOWEST, float32(0)
        lane = int32(cuda.threadIdx.x & 31)
        of_key = uint32(lane) % uint32(n_lanes)
        is_idle_lane = of_key * uint32(HALVES_PER_LOAD) >= head_dim
        first_lane = int32(lane & ~(n_lanes - 1))
        own = uint32(of_key // uint32(lanes_a_score)) * uint32(n_own)  # number of its first score
        key = int32(first_key)
        first_of_warp = int32(key - int32(uint32(lane) // uint32(n_lanes)))
        while first_of_warp < end:
            for load in range(KEYS_IN_FLIGHT):
                if int32(key + load * keys_a_load) == pos:  # the newest, not in the cache yet
                    at = int32(uint32(d) >> uint32(1))
                    k0, k1, k2, k3 = load_uint4_shared(fresh, at)
                    k_now[load, 0], k_now[load, 1] = k0, k1
                    k_now[load, 2], k_now[load, 3] = k2, k3
                    v0, v1, v2, v3 = load_uint4_shared(fresh, int32(head_words + at))
                    v_now[load, 0], v_now[load, 1] = v0, v1
                    v_now[load, 2], v_now[load, 3] = v2, v3
            for i in range(n_scores):
                score[i] = float32(0)
            for half in range(2):  # registers are short: the query stays in shared memory
                for load in range(KEYS_IN_FLIGHT):
                    for word in range(2):
                        halves = k_now[load, 2 * half + word]
                        if is_padded and is_idle_lane:
                            halves = uint32(0)
                        keys[load, 2 * word], keys[load, 2 * word + 1] = half2_to_float2(halves)
                for head in range(n_heads):
                    at = int32(head * head_dim + half * (head_dim // 2))
                    at = int32(at + int32(uint32(d) >> uint32(1)))
                    q0, q1, q2, q3 = load_float4_shared(query, at)
                    for load in range(KEYS_IN_FLIGHT):
                        dot = score[load * n_heads + head]
                        dot += keys[load, 0] * q0
                        dot += keys[load, 1] * q1
                        dot += keys[load, 2] * q2
                        dot += keys[load, 3] * q3
                        score[load * n_heads + head] = dot
            add_up(score)
            for i in range(n_own):
                load = uint32(own + uint32(i)) // uint32(n_heads)
                if int32(key + int32(load * uint32(keys_a_load))) >= end:
                    score[i] = NEGATIVE_INFINITY
            soften(score, reference, part, mixed)
            for load in range(KEYS_IN_FLIGHT):
                for head in range(n_heads):
                    weight[head] = of_score(score, load * n_heads + head, first_lane)
                for word in range(4):
                    low, high = half2_to_float2(v_now[load, word])
                    for head in range(n_heads):
                        mixed[head, 2 * word] += weight[head] * low
                        mixed[head, 2 * word + 1] += weight[head] * high
            for load in range(KEYS_IN_FLIGHT):
                for word in range(4):
                    k_now[load, word], v_now[load, word] = k_then[load, word], v_then[load, word]
            key += int32(block_keys)
            first_of_warp += int32(block_keys)
            last_key = int32(min(end, pos) - 1)
            load_keys(
                k_cache, v_cache, base, int32(key + block_keys), int32(first_of_warp + block_keys),
                last_key, k_then, v_then,
            )  # fmt: skip
        for head in range(n_heads):
            highest[head] = of_score(reference, head, first_lane)
            total[head] = float32(0)
            for load in range(KEYS_IN_FLIGHT):
                total[head] += of_score(part, load * n_heads + head, first_lane)

    return see_keys


@cache
def _give_of(form: Form) -> Any:
    """give_warps(...): the block's sums, from its warps' registers to `out`, or to `partial` where
    the sequence is split."""
    head_dim, n_heads, n_lanes = form.head_dim, tile_heads(form), lanes_per_key(form.head_dim)
    scatter_warp, n_left = scatter_warp_of(n_lanes, n_heads), scattered(n_lanes)
    n_mixed, n_parts = n_heads * N_WARPS * head_dim, n_heads * N_WARPS
    tops_at, totals_at, whole_at = n_mixed, n_mixed + n_parts, n_mixed + 2 * n_parts
    part_row = part_row_of(form)
    half_dim, q_dim = head_dim // 2, form.q_dim
    # Bits of the lane's number in which lanes with the same elements differ.
    twins = (n_left * WARP_SIZE // HALVES_PER_LOAD - 1) & ~(n_lanes - 1)

    @cuda.jit(device=True, forceinline=True)
    def give_warps(
        highest: Any, total: Any, mixed: Any, shared: Any, out: Any, partial: Any,
        s: Any, first_head: Any, end_head: Any, split: Any, n_splits: Any, most_splits: Any,
        epoch: Any,
    ) -> None:  # fmt: skip
        thread = uint32(cuda.threadIdx.x)
        warp, lane = int32(thread >> uint32(5)), int32(thread & uint32(31))
        first = int32(scatter_warp(highest, total, mixed))
        d = int32(uint32(lane) % uint32(n_lanes) * uint32(HALVES_PER_LOAD))
        if d < head_dim and lane & twins == 0:
            for head in range(n_heads):
                at = int32((head * N_WARPS + warp) * head_dim + d + first)
                for i in range(n_left):
                    shared[uint32(at + i)] = mixed[head, i]
        if lane == 0:
            for head in range(n_heads):
                shared[uint32(tops_at + head * N_WARPS + warp)] = highest[head]
                shared[uint32(totals_at + head * N_WARPS + warp)] = total[head]
        cuda.syncthreads()
        if warp < n_heads:  # a head a warp, a part a lane
            at = uint32(warp * N_WARPS) + uint32(lane) % uint32(N_WARPS)
            top, part = shared[tops_at + at], shared[totals_at + at]
            highest_of_all = warp_max(top)
            weight = math.exp2(top - highest_of_all)
            whole = warp_sum(weight * part if lane < N_WARPS else float32(0))
            cuda.syncwarp()  # two lanes have read each of them
            if lane < N_WARPS:
                shared[tops_at + at] = weight
            if lane == 0:
                shared[uint32(whole_at + 2 * warp)] = highest_of_all
                shared[uint32(whole_at + 2 * warp + 1)] = whole
        cuda.syncthreads()
        i, n_pairs = int32(cuda.threadIdx.x), int32(int32(end_head - first_head) * half_dim)
        while i < n_pairs:
            tile_head, d = int32(uint32(i) // uint32(half_dim)), int32(uint32(i) % uint32(half_dim))
            mix_0, mix_1 = float32(0), float32(0)
            for part in range(N_WARPS):
                weight = shared[uint32(tops_at + tile_head * N_WARPS + part)]
                at = uint32((tile_head * N_WARPS + part) * head_dim + 2 * d)
                mix_0 += weight * shared[at]
                mix_1 += weight * shared[uint32(at + uint32(1))]
            whole = shared[uint32(whole_at + 2 * tile_head + 1)]
            head = int32(first_head + tile_head)
            if n_splits == 1:
                at_out = int32(int32(s * q_dim) + int32(head * head_dim + 2 * d))
                give2(out, at_out, mix_0 / whole, mix_1 / whole, epoch)
            else:
                row = part_row(s, head, split, most_splits)
                give2(partial, int32(row + 2 * d), mix_0, mix_1, epoch)
                if d == 0:
                    top = shared[uint32(whole_at + 2 * tile_head)]
                    give2(partial, int32(row + head_dim), top, whole, epoch)
            i += int32(N_THREADS)

    return give_warps


@cache
def _idle_of(form: Form) -> Any:
    """give_idle(out, s, first_head, end_head, epoch): zeros, of an idle sequence."""
    head_dim, half_dim, q_dim = form.head_dim, form.head_dim // 2, form.q_dim

    @cuda.jit(device=True, forceinline=True)
    def give_idle(out: Any, s: Any, first_head: Any, end_head: Any, epoch: Any) -> None:
        for i in range(cuda.threadIdx.x, (end_head - first_head) * half_dim, N_THREADS):
            at = s * q_dim + first_head * head_dim + 2 * i
            give2(out, at, float32(0), float32(0), epoch)

    return give_idle


@cache
def attend_of(form: Form) -> Any:
    """attention(code, slot_pos, slot_seq, pool): the instruction code.this."""
    n_seqs, head_dim, n_kv_heads, n_q_heads = (
        *(form.n_seqs, form.head_dim, form.n_kv_heads, form.n_heads),
    )
    group_size, n_heads, n_tiles = n_q_heads // n_kv_heads, tile_heads(form), tiles_a_group(form)
    n_lanes, n_row_items = lanes_per_key(head_dim), n_kv_heads * n_tiles
    keys_a_load = WARP_SIZE // n_lanes
    block_keys = keys_a_pass(head_dim, N_WARPS)
    load_keys, take_query, append = _load_keys_of(head_dim), _take_of(form), _append_of(form)
    see_keys, give_warps, give_idle = _see_keys_of(form), _give_of(form), _idle_of(form)
    give_splits, split_of = give_splits_of(form), split_of_keys(block_keys)
    n_query, n_merged = n_heads * head_dim, _merged_floats(n_heads, head_dim)
    fresh_at, merged_at = n_query, n_query + head_dim
    assert _pool_floats(n_heads, head_dim) <= form.pool_floats, f"{form}: attention's pool"

    @cuda.jit(device=True, forceinline=True)
    def attention(code: Any, slot_pos: Any, slot_seq: Any, pool: Any) -> None:
        w = code.this
        highest = cuda.local.array(n_heads, float32)
        total = cuda.local.array(n_heads, float32)
        mixed = cuda.local.array((n_heads, HALVES_PER_LOAD), float32)
        k_now = cuda.local.array((KEYS_IN_FLIGHT, 4), uint32)
        v_now = cuda.local.array((KEYS_IN_FLIGHT, 4), uint32)
        k_then = cuda.local.array((KEYS_IN_FLIGHT, 4), uint32)
        v_then = cuda.local.array((KEYS_IN_FLIGHT, 4), uint32)
        shared_query = part_of(pool, 0, n_query, float32)
        fresh = part_of(pool, fresh_at, head_dim, uint32)
        merged = part_of(pool, merged_at, n_merged, float32)
        qkv, out = (
            array_at(w[words.X], (UNSEEN,), uint32),
            array_at(w[words.OUT], (UNSEEN,), uint32),
        )
        k_cache = array_at(w[words.K_CACHE], (UNSEEN,), float16)
        v_cache = array_at(w[words.V_CACHE], (UNSEEN,), float16)
        epoch = epoch_of(code, w[words.PC])
        x_epoch = epoch_of(code, w[words.X_WRITER])
        most_splits = word_of(w, words.N_SPLITS)
        partial = array_at(w[words.PARTIAL], (UNSEEN,), uint32)
        inner = uint_as_float(uint32(word_of(w, words.INNER)))
        thread = uint32(cuda.threadIdx.x)
        warp, lane = int32(thread >> uint32(5)), int32(thread & uint32(31))
        d = int32(uint32(lane) % uint32(n_lanes) * uint32(HALVES_PER_LOAD))
        lane_d = int32(d if d < head_dim else 0)
        key_lane = int32(uint32(lane) // uint32(n_lanes))
        item, n_items = int32(cuda.blockIdx.x), int32(most_splits * (n_row_items * n_seqs))
        while item < n_items:
            s = int32(uint32(item) % uint32(n_seqs))
            tile = int32(uint32(item) // uint32(n_seqs) % uint32(n_row_items))
            split = int32(uint32(item) // uint32(n_seqs * n_row_items))
            kv_head = int32(uint32(tile) // uint32(n_tiles))
            of_group = int32(uint32(tile) % uint32(n_tiles) * uint32(n_heads))
            first_head = int32(int32(kv_head * group_size) + of_group)
            end_head = min(int32(first_head + n_heads), int32((kv_head + 1) * group_size))
            pos = slot_pos[uint32(s)]
            end = int32(pos + 1)
            begin = max(int32(end - word_of(w, words.WINDOW)), int32(0))
            n_splits, split_keys = split_of(int32(end - begin), most_splits)
            if pos < 0:
                if split == 0:  # its row is waited for: what comes after counts on that
                    cuda.syncthreads()
                    take_query(
                        qkv, x_epoch, s, kv_head, first_head, end_head, inner, shared_query, fresh
                    )
                    give_idle(out, s, first_head, end_head, epoch)
            elif split < n_splits:
                begin += int32(split * split_keys)
                end = min(int32(begin + split_keys), end)
                row = (int64(slot_seq[s]) * n_kv_heads + kv_head) * w[words.MAX_SEQ_LEN]
                base = row * head_dim + lane_d
                of_warp = int32(begin + int32(warp * (KEYS_IN_FLIGHT * keys_a_load)))
                first_key = int32(of_warp + key_lane)
                for load in range(KEYS_IN_FLIGHT):
                    for word in range(4):
                        k_now[load, word], v_now[load, word] = uint32(0), uint32(0)
                        k_then[load, word], v_then[load, word] = uint32(0), uint32(0)
                last_key = int32(min(end, pos) - 1)
                load_keys(k_cache, v_cache, base, first_key, of_warp, last_key, k_now, v_now)
                load_keys(
                    k_cache, v_cache, base, int32(first_key + block_keys),
                    int32(of_warp + block_keys), last_key, k_then, v_then,
                )  # fmt: skip
                cuda.syncthreads()  # `pool` may still be read for what was before
                take_query(
                    qkv, x_epoch, s, kv_head, first_head, end_head, inner, shared_query, fresh
                )
                cuda.syncthreads()
                if split == int32(n_splits - 1) and of_group == 0:
                    append(k_cache, v_cache, (row + pos) * head_dim, fresh)
                for head in range(n_heads):
                    for i in range(HALVES_PER_LOAD):
                        mixed[head, i] = float32(0)
                see_keys(
                    k_cache, v_cache, base, first_key, end, pos, lane_d,
                    shared_query, fresh, k_now, v_now, k_then, v_then, highest, total, mixed,
                )  # fmt: skip
                give_warps(
                    highest, total, mixed, merged, out, partial,
                    s, first_head, end_head, split, n_splits, most_splits, epoch,
                )  # fmt: skip
                if n_splits > 1:
                    give_splits(
                        partial, out, s, first_head, end_head, split, n_splits, most_splits, epoch
                    )
            item += int32(cuda.gridDim.x)
        cuda.syncthreads()  # `pool` is free for the next instruction

    return attention
