"""Attention of runs of new tokens over the KV cache: causal online softmax over tiles.

out[t, h] = sum_p softmax_p(score[t, h, p]) * v[p]  over p <= pos[t] (the last `window` of them)
score     = scale * q[t, h] . k[p], or softcap * tanh(that / softcap)

q, out            float32[n_tokens, n_heads, head_dim]   out overlaps nothing
k_cache, v_cache  float16[n_seqs, n_kv_heads, max_seq_len, head_dim]   one layer; any size
                  or, attention_prefill_q8, int8 likewise, and k_scales, v_scales
                  float16[n_seqs, n_kv_heads, max_seq_len, head_dim / 32]: element = quant * scale
seq, pos          int32[n_tokens]   read on the device; the rows of one sequence stand together
                  and ascend in pos

grid     (token tiles, n_kv_heads), 128 threads; the last tiles, which see most keys, begin first
FLOPs    4 * n_heads * head_dim for every key that a row sees, FP32; beside it, a tile of 64 x 128
         loads its q from the L2 (256 * head_dim bytes) and K and V (as many each)
sm_52    255 registers, 8 warps an SM; shared 24.8 KiB (head_dim 32, 64, 256) to 32.8 KiB (128)
         FFMA share of the loops: scores 88 % (83 % for head_dim 256); weights x V 75, 86, 81, 84,
         90 and 90 % for head_dim 32, 64, 80, 96, 128 and 256

The 64 rows of a tile are tokens x the heads of a group, so that all share each K and V. Per tile
of 128 keys (64 for head_dim 256): scores 8 x 8 a thread, like a matrix product (products.py); the
row's softmax over the 16 threads that hold it, by shuffles; weights of 64 keys at a time to shared
memory, weights x V, 8 x head_dim/16 a thread. Tiles beyond the causal edge or before the window
are never visited. A tile of rows that holds several sequences is done one sequence after another,
the others' rows masked.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, Final

import numpy as np
from numba import cuda, float32, int32, int64, uint32

from m40llm.errors import KernelContractError
from m40llm.kernels.attention_common import (
    HALVES_PER_LOAD,
    LOWEST,
    check_attention,
    check_attention_q8,
    score_factors,
    window_keys,
)
from m40llm.kernels.attention_eights import eight_of
from m40llm.kernels.attention_scores import add_scores
from m40llm.kernels.attention_tiles import (
    BM,
    COLUMNS,
    HALF_KEYS,
    N_THREADS,
    TM,
    WEIGHTS_SIZE,
    key_halves,
    place,
    pool_size,
    put_weights,
    row_of,
    row_sum_and_max,
    tile_keys,
    value_loads,
    weigh,
)
from m40llm.kernels.attention_values import add_values, load_values, store_values
from m40llm.kernels.contract import Kernel, Launcher, ceil_div
from m40llm.kernels.intrinsics import store_float2, store_float4

REGISTERS: Final = 255  # 64 scores and head_dim / 2 of `mixed`: all that there are


@cache
def _store(head_dim: int) -> Any:
    """store(total, mixed, out, first_token, end_token, group_size): the rows' sums, divided."""
    n_quads, rest = head_dim // 64, head_dim % 64 // COLUMNS
    row_sum, _ = row_sum_and_max()

    @cuda.jit(device=True, forceinline=True)
    def store(
        total: Any, mixed: Any, out: Any, first_token: Any, end_token: Any, group_size: Any
    ) -> None:
        first_row, column = place()
        for i in range(TM):
            whole = row_sum(total[i])
            row = row_of(first_row, i)
            token = first_token + row // group_size
            head = cuda.blockIdx.y * group_size + row % group_size
            if token < end_token:
                at = (int64(token) * out.shape[1] + head) * head_dim
                for d in range(0, 4 * n_quads, 4):
                    store_float4(
                        out, at + 16 * d + 4 * column,
                        mixed[i, d] / whole, mixed[i, d + 1] / whole,
                        mixed[i, d + 2] / whole, mixed[i, d + 3] / whole,
                    )  # fmt: skip
                d = 4 * n_quads
                if rest == 2:
                    at += 64 * n_quads + 2 * column
                    store_float2(out, at, mixed[i, d] / whole, mixed[i, d + 1] / whole)
                if rest == 1:
                    out[token, head, 64 * n_quads + column] = mixed[i, d] / whole

    return store


@cache
def _attend_run(head_dim: int, has_softcap: bool, is_q8: bool) -> Any:
    """attend_run(...): the rows of one sequence, `run` to `run_end`, against all keys they see."""
    n_halves, bn = key_halves(head_dim), tile_keys(head_dim)
    scores, weigh_tile = add_scores(head_dim, is_q8), weigh(head_dim, has_softcap)
    load, store, values = (
        make(head_dim, is_q8) for make in (load_values, store_values, add_values)
    )
    n_loads, n_keys, n_words = value_loads(head_dim), bn // COLUMNS, eight_of(is_q8).n_words

    @cuda.jit(device=True, forceinline=True)
    def attend_run(
        q: Any, q_at: Any, k_cache: Any, k_scales: Any, v_cache: Any, v_scales: Any, seq: Any,
        pos: Any, run: Any, run_end: Any, is_whole: Any, inner: Any, outer: Any, window: Any,
        pool: Any, row_last: Any, highest: Any, total: Any, mixed: Any,
    ) -> None:  # fmt: skip
        score = cuda.local.array((TM, n_keys), float32)
        raw = cuda.local.array((n_loads, n_words), uint32)
        k_at = cuda.local.array(n_halves, int64)
        row = int64(seq[run]) * k_cache.shape[1] + cuda.blockIdx.y
        base = row * k_cache.shape[2] * head_dim
        first_pos, last_key = int32(pos[run]), int32(pos[run_end - 1])
        first_key = int32(max(int32(first_pos + 1) - window, 0))
        while first_key <= last_key:
            for i in range(n_halves):
                key = min(int32(first_key + cuda.threadIdx.x // 2 + HALF_KEYS * i), last_key)
                d = int32(cuda.threadIdx.x % 2 * HALVES_PER_LOAD)
                k_at[i] = base + int64(key) * head_dim + d
            for i in range(TM):
                for j in range(n_keys):
                    score[i, j] = float32(0)
            scores(score, pool, q, q_at, k_cache, k_scales, k_at)
            load(v_cache, v_scales, base, first_key, last_key, raw)
            is_edge = not is_whole or first_key + bn > first_pos + 1 or window <= last_key
            weigh_tile(
                score, row_last, first_key, is_edge, window, inner, outer, highest, total, mixed
            )
            put_weights(score, 0, pool)
            store(raw, pool, uint32(WEIGHTS_SIZE))
            cuda.syncthreads()
            values(pool, v_cache, v_scales, base, first_key, last_key, raw, mixed)
            if n_halves == 2 and first_key + HALF_KEYS <= last_key:
                put_weights(score, 1, pool)
                cuda.syncthreads()
                next_key = int32(first_key + HALF_KEYS)
                values(pool, v_cache, v_scales, base, next_key, last_key, raw, mixed)
            first_key = int32(first_key + bn)

    return attend_run


@cache
def _attend_tile(head_dim: int, has_softcap: bool, is_q8: bool) -> Any:
    """attend_tile(...): what a block does. FP16 has no scales: its caches stand in for them."""
    td, n_pool = head_dim // COLUMNS, pool_size(head_dim)
    attend_run, store = _attend_run(head_dim, has_softcap, is_q8), _store(head_dim)

    @cuda.jit(device=True, forceinline=True)
    def attend_tile(
        q: Any, k_cache: Any, k_scales: Any, v_cache: Any, v_scales: Any, seq: Any, pos: Any,
        inner: Any, outer: Any, window: Any, group_size: Any, out: Any,
    ) -> None:  # fmt: skip
        pool = cuda.shared.array(n_pool, float32, alignment=16)
        row_last = cuda.shared.array(BM, int32)
        highest, total = cuda.local.array(TM, float32), cuda.local.array(TM, float32)
        mixed, q_at = cuda.local.array((TM, td), float32), cuda.local.array(2, uint32)
        for i in range(TM):
            highest[i], total[i] = LOWEST, float32(0)
            for d in range(td):
                mixed[i, d] = float32(0)

        tile_tokens = int32(BM // group_size)
        first_token = int32((cuda.gridDim.x - 1 - cuda.blockIdx.x) * tile_tokens)
        end_token = min(int32(first_token + tile_tokens), int32(q.shape[0]))
        thread = int32(cuda.threadIdx.x)
        for i in range(2):
            row = int32(thread // 4 + BM // 2 * i)
            token = min(int32(first_token + row // group_size), int32(end_token - 1))
            head = cuda.blockIdx.y * group_size + row % group_size
            quads = (int64(token) * q.shape[1] + head) * (head_dim // 4) + thread % 4
            q_at[i] = uint32(quads)

        run, my_token = first_token, int32(first_token + thread % BM // group_size)
        while run < end_token:
            run_end = int32(run + 1)
            while run_end < end_token and seq[run_end] == seq[run]:
                run_end = int32(run_end + 1)
            if thread < BM:
                row_last[thread] = pos[my_token] if run <= my_token < run_end else -1
            attend_run(
                q, q_at, k_cache, k_scales, v_cache, v_scales, seq, pos, run, run_end,
                run == first_token and run_end == end_token,
                inner, outer, window, pool, row_last, highest, total, mixed,
            )  # fmt: skip
            run = run_end
        store(total, mixed, out, first_token, end_token, group_size)

    return attend_tile


@cache
def _compile(head_dim: int, has_softcap: bool) -> Kernel:
    attend_tile = _attend_tile(head_dim, has_softcap, False)

    def attention_prefill(
        q: Any, k_cache: Any, v_cache: Any, seq: Any, pos: Any, inner: Any, outer: Any,
        window: Any, group_size: Any, out: Any,
    ) -> None:  # fmt: skip
        caches = k_cache, k_cache, v_cache, v_cache
        attend_tile(q, *caches, seq, pos, inner, outer, window, group_size, out)

    return Kernel(attention_prefill, registers=REGISTERS)


@cache
def _compile_q8(head_dim: int, has_softcap: bool) -> Kernel:
    attend_tile = _attend_tile(head_dim, has_softcap, True)

    def attention_prefill_q8(
        q: Any, k_quants: Any, k_scales: Any, v_quants: Any, v_scales: Any, seq: Any, pos: Any,
        inner: Any, outer: Any, window: Any, group_size: Any, out: Any,
    ) -> None:  # fmt: skip
        caches = k_quants, k_scales, v_quants, v_scales
        attend_tile(q, *caches, seq, pos, inner, outer, window, group_size, out)

    return Kernel(attention_prefill_q8, registers=REGISTERS)


def attention_prefill(
    q: Any,
    k_cache: Any,
    v_cache: Any,
    seq: Any,
    pos: Any,
    out: Any,
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    stream: Launcher,
) -> None:
    """Every row attends to its sequence up to its position; window, softcap: 0 for none.

    The keys and values of the rows themselves are in the cache already. KernelContractError for
    arguments that are not as the head of this file says.
    """
    check_attention(q, k_cache, v_cache, seq, pos, window, softcap, out)
    _launch(_compile, q, (k_cache, v_cache), seq, pos, scale, window, softcap, out, stream)


def attention_prefill_q8(
    q: Any,
    k_quants: Any,
    k_scales: Any,
    v_quants: Any,
    v_scales: Any,
    seq: Any,
    pos: Any,
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
    _launch(_compile_q8, q, caches, seq, pos, scale, window, softcap, out, stream)


def _launch(
    compile_: Callable[[int, bool], Kernel], q: Any, caches: tuple[Any, ...], seq: Any, pos: Any,
    scale: float, window: int, softcap: float, out: Any, stream: Launcher,
) -> None:  # fmt: skip
    n_tokens, n_heads, head_dim = q.shape
    n_kv_heads = caches[0].shape[1]
    group_size = n_heads // n_kv_heads
    if group_size > BM:
        raise KernelContractError(f"q: expected groups of at most {BM} heads, got {group_size}")
    if n_tokens == 0:
        return
    stream.launch(
        compile_(head_dim, bool(softcap)),
        (ceil_div(n_tokens, BM // group_size), n_kv_heads), N_THREADS,
        q, *caches, seq, pos, *score_factors(scale, softcap), window_keys(window),
        np.int32(group_size), out,
    )  # fmt: skip
