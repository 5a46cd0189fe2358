"""Attention of single tokens over the KV cache: one row a sequence, any number of rows.

out[t, h] = sum_p softmax_p(score[t, h, p]) * v[p]  over p <= pos[t] (the last `window` of them)
score     = scale * q[t, h] . k[p], or softcap * tanh(that / softcap)

q, out            float32[n_tokens, n_heads, head_dim]   out overlaps nothing
k_cache, v_cache  float16[n_seqs, n_kv_heads, max_seq_len, head_dim]   one layer; any size
                  or, attention_decode_q8, int8 likewise, and k_scales, v_scales
                  float16[n_seqs, n_kv_heads, max_seq_len, head_dim / 32]: element = quant * scale
seq, pos          int32[n_tokens]   read on the device; row t has pos[t] + 1 keys: with -1 it is
                                    idle, and out is 0
partial           float32[partial_shape(...)]   workspace, need not be initialised
arrived           int32[n_tokens, n_heads]      zero before the first launch; left zero

grid     (n_splits, n_kv_heads * head tiles, n_tokens), 128 threads
bytes    4 * n_kv_heads * head_dim for every key that a row sees (K and V, read once for the up to
         4 heads of a tile; a group of 5 to 8 heads takes two tiles), bandwidth-bound; of Q8_0
         34/64 of it
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

from collections.abc import Callable
from functools import cache
from typing import Any, Final

import numpy as np
from numba import cuda, float32, int32, int64

from m40llm.errors import KernelContractError
from m40llm.kernels.attention_common import (
    HALVES_PER_LOAD,
    HEAD_DIMS,
    LOWEST,
    TINY_HEAD_DIMS,
    check_attention,
    check_attention_q8,
    score_factors,
    window_keys,
)
from m40llm.kernels.attention_keys import (
    attend_over,
    head_tile,
    keys_a_pass,
    lanes_per_key,
    query_loader,
)
from m40llm.kernels.attention_merge import (
    MAX_SPLITS,
    N_THREADS,
    N_WARPS,
    merge_floats,
    merge_splits,
    merge_warps,
)
from m40llm.kernels.contract import Kernel, Launcher, ceil_div, check_array

MIN_SPLIT_KEYS: Final = 64


def partial_shape(
    n_tokens: int, n_heads: int, head_dim: int, n_splits: int
) -> tuple[int, int, int, int]:
    """Of each split: mixed values [head_dim], then max and total."""
    return n_tokens, n_heads, n_splits, head_dim + 2


def split_count(n_tokens: int, n_heads: int, n_kv_heads: int, max_seq_len: int, n_sms: int) -> int:
    """Splits that fill a card four blocks an SM, as far as the longest row has keys for them."""
    group_size = n_heads // n_kv_heads
    n_blocks = n_tokens * n_kv_heads * ceil_div(group_size, head_tile(group_size))
    wanted = ceil_div(4 * n_sms, max(n_blocks, 1))
    return max(1, min(wanted, ceil_div(max_seq_len, MIN_SPLIT_KEYS), MAX_SPLITS))


def registers_of(n_heads: int) -> int:
    """What a thread may take: 16 a head for q and mixed, and the loads in flight."""
    return 128 if n_heads > 2 else 96


@cuda.jit(device=True, forceinline=True)
def put_zeros(out: Any, token: Any, first_head: Any, end_head: Any) -> None:
    """out[token] of these heads; the whole block calls."""
    head_dim = out.shape[2]
    for at in range(cuda.threadIdx.x, (end_head - first_head) * head_dim, N_THREADS):
        out[token, first_head + at // head_dim, at % head_dim] = float32(0)


@cache
def _attend_row(head_dim: int, n_heads: int, has_softcap: bool, is_q8: bool) -> Any:
    """attend_row(...): what a block does. FP16 has no scales: its caches stand in for them."""
    n_lanes = lanes_per_key(head_dim)
    attend = attend_over(head_dim, n_heads, has_softcap, is_q8)
    merge_warp_sums = merge_warps(head_dim, n_heads, n_lanes)
    merge_split_sums = merge_splits(head_dim)
    load_query = query_loader(head_dim, n_heads)
    unit = min(keys_a_pass(head_dim), MIN_SPLIT_KEYS)  # a block takes whole passes
    n_shared, n_weights = merge_floats(head_dim, n_heads), N_WARPS * MAX_SPLITS

    @cuda.jit(device=True, forceinline=True)
    def attend_row(
        q: Any, k_cache: Any, k_scales: Any, v_cache: Any, v_scales: Any, seq: Any, pos: Any,
        inner: Any, outer: Any, window: Any, partial: Any, arrived: Any, out: Any,
    ) -> None:  # fmt: skip
        shared = cuda.shared.array(n_shared, float32)
        weights = cuda.shared.array(n_weights, float32)
        ticket = cuda.shared.array(1, int32)
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
        if end < 1:
            if split == 0:
                put_zeros(out, token, first_head, end_head)
            return
        begin = max(end - window, 0)
        split_keys = (end - begin + cuda.gridDim.x - 1) // cuda.gridDim.x
        split_keys = (max(split_keys, MIN_SPLIT_KEYS) + unit - 1) // unit * unit
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
        keys = k_cache, k_scales, v_cache, v_scales
        attend(query, *keys, base, begin, end, outer, highest, total, mixed)
        part = token, first_head, end_head, split, n_splits
        merge_warp_sums(highest, total, mixed, partial, out, shared, *part)
        if n_splits > 1:
            whole = token, cuda.blockIdx.y, first_head, end_head, n_splits
            merge_split_sums(partial, arrived, out, ticket, weights, *whole)

    return attend_row


@cache
def _compile(head_dim: int, n_heads: int, has_softcap: bool) -> Kernel:
    """The kernel for tiles of `n_heads` heads, whatever the groups that they are part of."""
    attend_row = _attend_row(head_dim, n_heads, has_softcap, False)

    def attention_decode(
        q: Any, k_cache: Any, v_cache: Any, seq: Any, pos: Any, inner: Any, outer: Any,
        window: Any, partial: Any, arrived: Any, out: Any,
    ) -> None:  # fmt: skip
        caches = k_cache, k_cache, v_cache, v_cache
        attend_row(q, *caches, seq, pos, inner, outer, window, partial, arrived, out)

    return Kernel(attention_decode, registers=registers_of(n_heads))


@cache
def _compile_q8(head_dim: int, n_heads: int, has_softcap: bool) -> Kernel:
    attend_row = _attend_row(head_dim, n_heads, has_softcap, True)

    def attention_decode_q8(
        q: Any, k_quants: Any, k_scales: Any, v_quants: Any, v_scales: Any, seq: Any, pos: Any,
        inner: Any, outer: Any, window: Any, partial: Any, arrived: Any, out: Any,
    ) -> None:  # fmt: skip
        caches = k_quants, k_scales, v_quants, v_scales
        attend_row(q, *caches, seq, pos, inner, outer, window, partial, arrived, out)

    return Kernel(attention_decode_q8, registers=registers_of(n_heads))


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
    how = (k_cache, v_cache), seq, pos, scale, window, softcap, partial, arrived, out, stream
    _launch(_compile, q, *how)


def attention_decode_q8(
    q: Any,
    k_quants: Any,
    k_scales: Any,
    v_quants: Any,
    v_scales: Any,
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
    """The same over a cache in Q8_0."""
    check_attention_q8(
        q, (k_quants, k_scales), (v_quants, v_scales), seq, pos, window, softcap, out
    )
    caches = k_quants, k_scales, v_quants, v_scales
    how = caches, seq, pos, scale, window, softcap, partial, arrived, out, stream
    _launch(_compile_q8, q, *how)


def _launch(
    compile_: Callable[[int, int, bool], Kernel], q: Any, caches: tuple[Any, ...], seq: Any,
    pos: Any, scale: float, window: int, softcap: float, partial: Any, arrived: Any, out: Any,
    stream: Launcher,
) -> None:  # fmt: skip
    n_tokens, n_heads, head_dim = q.shape
    n_kv_heads, n_splits = caches[0].shape[1], partial.shape[2] if len(partial.shape) == 4 else 1
    check_array("partial", partial, np.float32, (n_tokens, n_heads, n_splits, head_dim + 2))
    check_array("arrived", arrived, np.int32, (n_tokens, n_heads))
    if not 1 <= n_splits <= MAX_SPLITS:
        raise KernelContractError(f"partial: expected 1 to {MAX_SPLITS} splits, got {n_splits}")
    if n_tokens == 0:
        return
    group_size = n_heads // n_kv_heads
    tile = head_tile(group_size)
    stream.launch(
        compile_(head_dim, tile, bool(softcap)),
        (n_splits, n_kv_heads * ceil_div(group_size, tile), n_tokens), N_THREADS,
        q, *caches, seq, pos, *score_factors(scale, softcap), window_keys(window),
        partial, arrived, out,
    )  # fmt: skip
