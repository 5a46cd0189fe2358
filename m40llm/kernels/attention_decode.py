"""Attention of single tokens over the FP16 cache: one row a sequence, any number of rows.

out[t, h] = sum_p softmax_p(score[t, h, p]) * v[p]  over p <= pos[t] (the last `window` of them)
score     = scale * q[t, h] . k[p], or softcap * tanh(that / softcap)

q, out            float32[n_tokens, n_heads, head_dim]   out overlaps nothing
k_cache, v_cache  float16[n_seqs, n_kv_heads, max_seq_len, head_dim]   one layer; any size
seq, pos          int32[n_tokens]   read on the device; row t has pos[t] + 1 keys
partial           float32[partial_shape(...)]   workspace, need not be initialised
arrived           int32[n_tokens, n_heads]      zero before the first launch; left zero

grid     (n_splits, n_kv_heads * head tiles, n_tokens), 128 threads
bytes    4 * n_kv_heads * head_dim for every key that a row sees (K and V, read once for the up to
         4 heads of a tile; a group of 5 to 8 heads takes two tiles), bandwidth-bound
sm_52    registers as `registers_of` allots them: 128 with 4 heads, 16 warps on an SM (25 %), each
         with 2 KiB of K and V in flight; 288 GB/s need about 5 KiB an SM if a load takes 400
         clocks (an assumption, not measured)

A key is shared by `lanes_per_key` lanes, 8 elements each, so that a warp loads 512 contiguous
bytes; each of its groups of lanes keeps an online softmax of its own over every such key. Groups
are combined by shuffles, warps through shared memory, splits through `partial`. All three are the
same sum: weights exp(max_i - max) on (max_i, total_i, mixed_i), which is log-sum-exp.

A split has at least MIN_SPLIT_KEYS keys: the blocks that a short row leaves over return at once,
and a row that one block can do is written straight to `out`. Else the block that finishes last
combines the splits, always in the same order: a second kernel would cost one more launch a layer.
What that would take in a graph, beside this counter, has not been measured.
"""

import math
from functools import cache
from typing import Any, Final

import numpy as np
from numba import cuda, float32, int64, uint32

from m40llm.errors import KernelContractError
from m40llm.kernels.attention_common import (
    HALVES_PER_LOAD,
    HEAD_DIMS,
    LOWEST,
    NEGATIVE_INFINITY,
    TINY_HEAD_DIMS,
    check_attention,
    score_factors,
    window_keys,
)
from m40llm.kernels.attention_merge import MAX_SPLITS, N_THREADS, N_WARPS, merge_splits, merge_warps
from m40llm.kernels.contract import Kernel, Launcher, ceil_div, check_array
from m40llm.kernels.intrinsics import half2_to_float2, load_uint4_readonly
from m40llm.kernels.reduce import FULL_MASK, WARP_SIZE

KEYS_IN_FLIGHT: Final = 2  # loads of K, and of V, that a lane has under way
MAX_HEADS: Final = 4  # of a tile
MIN_SPLIT_KEYS: Final = 64


def partial_shape(
    n_tokens: int, n_heads: int, head_dim: int, n_splits: int
) -> tuple[int, int, int, int]:
    """Of each split: mixed values [head_dim], then max and total."""
    return n_tokens, n_heads, n_splits, head_dim + 2


def head_tile(group_size: int) -> int:
    """Heads that share a load of K and V: the whole group, or equal parts of it."""
    return ceil_div(group_size, ceil_div(group_size, MAX_HEADS))


def split_count(n_tokens: int, n_heads: int, n_kv_heads: int, max_seq_len: int, n_sms: int) -> int:
    """Splits that fill a card four blocks an SM, as far as the longest row has keys for them."""
    group_size = n_heads // n_kv_heads
    n_blocks = n_tokens * n_kv_heads * ceil_div(group_size, head_tile(group_size))
    wanted = ceil_div(4 * n_sms, max(n_blocks, 1))
    return max(1, min(wanted, ceil_div(max_seq_len, MIN_SPLIT_KEYS), MAX_SPLITS))


def lanes_per_key(head_dim: int) -> int:
    """The power of two of lanes that hold a key, 8 elements each; 80 and 96 leave some idle."""
    return 1 << (ceil_div(head_dim, HALVES_PER_LOAD) - 1).bit_length()


def registers_of(n_heads: int) -> int:
    """What a thread may take: 16 a head for q and mixed, and the loads in flight."""
    return 128 if n_heads > 2 else 96


@cache
def _score(n_lanes: int, has_softcap: bool) -> Any:
    """score(halves, key, query, head, outer): of a lane's key with a head, in every lane of it."""

    @cuda.jit(device=True, forceinline=True)
    def score(halves: Any, key: Any, query: Any, head: Any, outer: Any) -> Any:
        dot = float32(0)
        for word in range(4):
            low, high = half2_to_float2(halves[key, word])
            dot += low * query[head, 2 * word]
            dot += high * query[head, 2 * word + 1]
        lane_bit = 1
        while lane_bit < n_lanes:
            dot += cuda.shfl_xor_sync(FULL_MASK, dot, lane_bit)
            lane_bit *= 2
        if has_softcap:
            dot = outer * math.tanh(dot)
        return dot

    return score


@cache
def _accumulate(n_heads: int) -> Any:
    """accumulate(score, halves, highest, total, mixed, head): an online softmax takes new keys."""

    @cuda.jit(device=True, forceinline=True)
    def accumulate(
        score: Any, halves: Any, highest: Any, total: Any, mixed: Any, head: Any
    ) -> None:
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
            for word in range(4):
                low, high = half2_to_float2(halves[key, word])
                mixed[head, 2 * word] += weight * low
                mixed[head, 2 * word + 1] += weight * high

    return accumulate


@cache
def _attend(head_dim: int, n_heads: int, has_softcap: bool) -> Any:
    """attend(query, k, v, base, begin, end, outer, highest, total, mixed): a block's keys."""
    n_lanes = lanes_per_key(head_dim)
    keys_a_load = WARP_SIZE // n_lanes
    block_keys = N_WARPS * KEYS_IN_FLIGHT * keys_a_load
    score_of, accumulate = _score(n_lanes, has_softcap), _accumulate(n_heads)

    @cuda.jit(device=True, forceinline=True)
    def attend(
        query: Any,
        k_cache: Any,
        v_cache: Any,
        base: Any,
        begin: Any,
        end: Any,
        outer: Any,
        highest: Any,
        total: Any,
        mixed: Any,
    ) -> None:
        k_halves = cuda.local.array((KEYS_IN_FLIGHT, 4), uint32)
        v_halves = cuda.local.array((KEYS_IN_FLIGHT, 4), uint32)
        score = cuda.local.array(KEYS_IN_FLIGHT, float32)
        warp = cuda.threadIdx.x // WARP_SIZE
        lane_key = (cuda.threadIdx.x % WARP_SIZE) // n_lanes
        my_first = begin + warp * (KEYS_IN_FLIGHT * keys_a_load) + lane_key
        for tile in range(0, end - begin, block_keys):
            for load in range(KEYS_IN_FLIGHT):
                key = min(my_first + tile + load * keys_a_load, end - 1)
                at = base + int64(key) * head_dim
                k0, k1, k2, k3 = load_uint4_readonly(k_cache, at)
                v0, v1, v2, v3 = load_uint4_readonly(v_cache, at)
                k_halves[load, 0], k_halves[load, 1] = k0, k1
                k_halves[load, 2], k_halves[load, 3] = k2, k3
                v_halves[load, 0], v_halves[load, 1] = v0, v1
                v_halves[load, 2], v_halves[load, 3] = v2, v3
            for head in range(n_heads):
                for load in range(KEYS_IN_FLIGHT):
                    score[load] = score_of(k_halves, load, query, head, outer)
                    if my_first + tile + load * keys_a_load >= end:
                        score[load] = NEGATIVE_INFINITY
                accumulate(score, v_halves, highest, total, mixed, head)

    return attend


@cache
def _compile(head_dim: int, n_heads: int, has_softcap: bool) -> Kernel:
    """The kernel for tiles of `n_heads` heads, whatever the groups that they are part of."""
    n_lanes = lanes_per_key(head_dim)
    attend = _attend(head_dim, n_heads, has_softcap)
    merge_warp_sums = merge_warps(head_dim, n_heads, n_lanes)
    merge_split_sums = merge_splits(head_dim, n_heads)

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

    def attention_decode(
        q: Any, k_cache: Any, v_cache: Any, seq: Any, pos: Any, inner: Any, outer: Any,
        window: Any, partial: Any, arrived: Any, out: Any,
    ) -> None:  # fmt: skip
        query = cuda.local.array((n_heads, HALVES_PER_LOAD), float32)
        highest = cuda.local.array(n_heads, float32)
        total = cuda.local.array(n_heads, float32)
        mixed = cuda.local.array((n_heads, HALVES_PER_LOAD), float32)
        split, token = cuda.blockIdx.x, cuda.blockIdx.z
        group_size = q.shape[1] // k_cache.shape[1]
        n_tiles = cuda.gridDim.y // k_cache.shape[1]
        kv_head = cuda.blockIdx.y // n_tiles
        first_head = kv_head * group_size + cuda.blockIdx.y % n_tiles * n_heads
        end_head = min(first_head + n_heads, (kv_head + 1) * group_size)

        end = pos[token] + 1
        begin = max(end - window, 0)
        split_keys = (end - begin + cuda.gridDim.x - 1) // cuda.gridDim.x
        split_keys = (split_keys + MIN_SPLIT_KEYS - 1) // MIN_SPLIT_KEYS * MIN_SPLIT_KEYS
        n_splits = (end - begin + split_keys - 1) // split_keys  # those that have keys
        if split >= n_splits:
            return
        begin += split * split_keys
        end = min(begin + split_keys, end)

        load_query(query, q, token, first_head, end_head, inner)
        for head in range(n_heads):
            highest[head], total[head] = LOWEST, float32(0)
            for d in range(HALVES_PER_LOAD):
                mixed[head, d] = float32(0)
        row = (int64(seq[token]) * k_cache.shape[1] + kv_head) * k_cache.shape[2]
        d = cuda.threadIdx.x % n_lanes * HALVES_PER_LOAD
        base = row * head_dim + (d if d < head_dim else 0)
        attend(query, k_cache, v_cache, base, begin, end, outer, highest, total, mixed)
        merge_warp_sums(
            highest, total, mixed, partial, out, token, first_head, end_head, split, n_splits
        )
        if n_splits > 1:
            merge_split_sums(partial, arrived, out, token, first_head, end_head, n_splits)

    return Kernel(attention_decode, registers=registers_of(n_heads))


def attention_decode(
    q: Any,
    k_cache: Any,
    v_cache: Any,
    seq: Any,
    pos: Any,
    partial: Any,
    arrived: Any,
    out: Any,
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    stream: Launcher,
) -> None:
    """Every row attends to its sequence up to its position; window, softcap: 0 for none.

    How many blocks share a row is partial.shape[2]; KernelContractError for arguments that are
    not as the head of this file says.
    """
    head_dims = TINY_HEAD_DIMS + HEAD_DIMS
    check_attention(q, k_cache, v_cache, seq, pos, window, softcap, out, head_dims)
    n_tokens, n_heads, head_dim = q.shape
    n_kv_heads, n_splits = k_cache.shape[1], partial.shape[2] if len(partial.shape) == 4 else 1
    check_array("partial", partial, np.float32, (n_tokens, n_heads, n_splits, head_dim + 2))
    check_array("arrived", arrived, np.int32, (n_tokens, n_heads))
    if not 1 <= n_splits <= MAX_SPLITS:
        raise KernelContractError(f"partial: expected 1 to {MAX_SPLITS} splits, got {n_splits}")
    if n_tokens == 0:
        return
    group_size = n_heads // n_kv_heads
    tile = head_tile(group_size)
    stream.launch(
        _compile(head_dim, tile, bool(softcap)),
        (n_splits, n_kv_heads * ceil_div(group_size, tile), n_tokens), N_THREADS,
        q, k_cache, v_cache, seq, pos, *score_factors(scale, softcap), window_keys(window),
        partial, arrived, out,
    )  # fmt: skip
