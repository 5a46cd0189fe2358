"""A block's range of the keys: scores, weights, and the values that they mix.

The keys of the first two passes are under way before the query has arrived, and the next pass's
always. The cache is written in this very launch, so it is not loaded through the read-only cache.

over the size law: `see_keys` is one function so that keys and sums stay in registers.
"""

import math
from functools import cache
from typing import Any, Final

from numba import cuda, float32, int32, int64, uint32

from m40llm.kernels.attention_common import HALVES_PER_LOAD, LOWEST, NEGATIVE_INFINITY
from m40llm.kernels.attention_keys import KEYS_IN_FLIGHT, keys_a_pass, lanes_per_key
from m40llm.kernels.bits import half2_to_float2
from m40llm.kernels.intrinsics import load_float4_shared, load_uint4, load_uint4_shared
from m40llm.kernels.program.attend_shape import tile_heads
from m40llm.kernels.program.form import N_WARPS, Form
from m40llm.kernels.reduce import FULL_MASK, WARP_SIZE, scatter_sums

_LAG: Final = 16.0  # of a reference behind the highest score, in units of ln 2


@cache
def load_keys_of(head_dim: int) -> Any:
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
def see_keys_of(form: Form) -> Any:
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
    load_keys, soften = load_keys_of(head_dim), _soften_of(n_lanes, n_heads)
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
