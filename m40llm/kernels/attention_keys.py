"""The keys of a block's part of last-token attention: what attention_decode and the program share.

A key is shared by `lanes_per_key` lanes, 8 elements each; each of a warp's groups of lanes keeps an
online softmax of its own over the keys that it sees. attention_merge.py makes them one.
"""

import math
from functools import cache
from typing import Any, Final

from numba import cuda, float32, int64, uint32

from m40llm.kernels.attention_common import HALVES_PER_LOAD, NEGATIVE_INFINITY
from m40llm.kernels.attention_eights import eight_of
from m40llm.kernels.attention_merge import N_WARPS
from m40llm.kernels.contract import ceil_div
from m40llm.kernels.reduce import FULL_MASK, WARP_SIZE

KEYS_IN_FLIGHT: Final = 2  # loads of K, and of V, that a lane has under way
MAX_HEADS: Final = 4  # of a tile


def head_tile(group_size: int) -> int:
    """Heads that share a load of K and V: the whole group, or equal parts of it."""
    return ceil_div(group_size, ceil_div(group_size, MAX_HEADS))


def lanes_per_key(head_dim: int) -> int:
    """The power of two of lanes that hold a key, 8 elements each; 80 and 96 leave some idle."""
    return 1 << (ceil_div(head_dim, HALVES_PER_LOAD) - 1).bit_length()


@cache
def score_of(n_lanes: int, has_softcap: bool, is_q8: bool) -> Any:
    """score(raw, key, query, head, outer): of a lane's key with a head, in every lane of it."""
    eight = eight_of(is_q8)
    pair, scale = eight.pair, eight.scale

    @cuda.jit(device=True, forceinline=True)
    def score(raw: Any, key: Any, query: Any, head: Any, outer: Any) -> Any:
        dot = float32(0)
        for word in range(4):
            low, high = pair(raw, key, word)
            dot += low * query[head, 2 * word]
            dot += high * query[head, 2 * word + 1]
        if is_q8:
            dot *= scale(raw, key)
        lane_bit = 1
        while lane_bit < n_lanes:
            dot += cuda.shfl_xor_sync(FULL_MASK, dot, lane_bit)
            lane_bit *= 2
        if has_softcap:
            dot = outer * math.tanh(dot)
        return dot

    return score


@cache
def accumulate_of(is_q8: bool) -> Any:
    """accumulate(score, raw, highest, total, mixed, head): an online softmax takes new keys."""
    eight = eight_of(is_q8)
    pair, scale = eight.pair, eight.scale

    @cuda.jit(device=True, forceinline=True)
    def accumulate(score: Any, raw: Any, highest: Any, total: Any, mixed: Any, head: Any) -> None:
        top = highest[head]
        for key in range(KEYS_IN_FLIGHT):
            top = max(top, score[key])
        shrink = math.exp2(highest[head] - top)
        highest[head] = top
        total[head] *= shrink
        for d in range(HALVES_PER_LOAD):
            mixed[head, d] *= shrink
        for key in range(KEYS_IN_FLIGHT):
            weight = math.exp2(score[key] - top)
            total[head] += weight
            if is_q8:
                weight *= scale(raw, key)
            for word in range(4):
                low, high = pair(raw, key, word)
                mixed[head, 2 * word] += weight * low
                mixed[head, 2 * word + 1] += weight * high

    return accumulate


def keys_a_pass(head_dim: int, n_warps: int = N_WARPS) -> int:
    """Keys that a block takes at a time."""
    return n_warps * KEYS_IN_FLIGHT * (WARP_SIZE // lanes_per_key(head_dim))


@cache
def attend_over(head_dim: int, n_heads: int, has_softcap: bool, is_q8: bool) -> Any:
    """attend(query, k, k_scales, v, v_scales, base, begin, end, outer, highest, total, mixed): a
    block's keys, of which attention_eights.py says how they are loaded."""
    n_lanes = lanes_per_key(head_dim)
    keys_a_load = WARP_SIZE // n_lanes
    block_keys = keys_a_pass(head_dim)
    score_with, accumulate = score_of(n_lanes, has_softcap, is_q8), accumulate_of(is_q8)
    n_words, load_eight = eight_of(is_q8).n_words, eight_of(is_q8).load

    @cuda.jit(device=True, forceinline=True)
    def attend(
        query: Any,
        k_cache: Any,
        k_scales: Any,
        v_cache: Any,
        v_scales: Any,
        base: Any,
        begin: Any,
        end: Any,
        outer: Any,
        highest: Any,
        total: Any,
        mixed: Any,
    ) -> None:
        k_raw = cuda.local.array((KEYS_IN_FLIGHT, n_words), uint32)
        v_raw = cuda.local.array((KEYS_IN_FLIGHT, n_words), uint32)
        score = cuda.local.array(KEYS_IN_FLIGHT, float32)
        warp = cuda.threadIdx.x // WARP_SIZE
        lane_key = (cuda.threadIdx.x % WARP_SIZE) // n_lanes
        my_first = begin + warp * (KEYS_IN_FLIGHT * keys_a_load) + lane_key
        for tile in range(0, end - begin, block_keys):
            for load in range(KEYS_IN_FLIGHT):
                key = min(my_first + tile + load * keys_a_load, end - 1)
                at = base + int64(key) * head_dim
                load_eight(k_cache, k_scales, at, k_raw, load)
                load_eight(v_cache, v_scales, at, v_raw, load)
            for head in range(n_heads):
                for load in range(KEYS_IN_FLIGHT):
                    score[load] = score_with(k_raw, load, query, head, outer)
                    if my_first + tile + load * keys_a_load >= end:
                        score[load] = NEGATIVE_INFINITY
                accumulate(score, v_raw, highest, total, mixed, head)

    return attend


@cache
def query_loader(head_dim: int, n_heads: int) -> Any:
    """load_query(query, q, token, first_head, end_head, inner): a lane's 8 elements a head."""
    n_lanes = lanes_per_key(head_dim)

    @cuda.jit(device=True, forceinline=True)
    def load_query(
        query: Any, q: Any, token: Any, first_head: Any, end_head: Any, inner: Any
    ) -> None:
        d = cuda.threadIdx.x % n_lanes * HALVES_PER_LOAD
        for head in range(n_heads):
            row = min(first_head + head, end_head - 1)  # a head too many repeats the last
            for i in range(HALVES_PER_LOAD):
                query[head, i] = float32(0)
                if d < head_dim:
                    query[head, i] = inner * q[token, row, d + i]

    return load_query
