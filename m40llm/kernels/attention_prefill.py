"""Attention of runs of new tokens over the FP16 cache: causal online softmax over tiles.

out[t, h] = sum_p softmax_p(score[t, h, p]) * v[p]  over p <= pos[t] (the last `window` of them)
score     = scale * q[t, h] . k[p], or softcap * tanh(that / softcap)

q, out            float32[n_tokens, n_heads, head_dim]   out overlaps nothing
k_cache, v_cache  float16[n_seqs, n_kv_heads, max_seq_len, head_dim]   one layer; any size
seq, pos          int32[n_tokens]   read on the device; the rows of one sequence stand together
                  and ascend in pos

grid     (token tiles, n_kv_heads), 128 threads (256 for head_dim 256); the last tiles, which see
         most keys, begin first
FLOPs    4 * n_heads * head_dim for every key that a row sees, FP32; beside it, a tile of 64 x 64
         loads its q from the L2 (256 * head_dim bytes) and K and V (as many)
sm_52    head_dim             32    64    80    96   128   256
         registers, at most  168   168   208   208   208   184
         shared KiB         25.8  25.8  25.8  25.8  25.8  34.3
         warps an SM          12    12     8     8     8     8

The 64 rows of a tile are tokens x the heads of a group, so that all share each K and V. Per tile
of 64 keys: scores 8 x 4 a thread, from chunks of q and K transposed in shared memory; the row's
softmax over the 16 threads that hold it, by shuffles; weights to shared memory, weights x V, 8 x
head_dim/16 a thread. Tiles beyond the causal edge or before the window are never visited. A tile
of rows that holds several sequences is done one sequence after another, the others' rows masked.
"""

from functools import cache
from typing import Any

from numba import cuda, float32, int32, int64

from m40llm.errors import KernelContractError
from m40llm.kernels.attention_common import (
    HALVES_PER_LOAD,
    LOWEST,
    check_attention,
    score_factors,
    window_keys,
)
from m40llm.kernels.attention_tiles import (
    BM,
    BN,
    COLUMNS,
    STRIDE,
    TN,
    add_scores,
    add_values,
    row_sum_and_max,
    stage_size,
    thread_count,
    thread_rows,
    weigh,
)
from m40llm.kernels.contract import Kernel, Launcher, ceil_div
from m40llm.kernels.intrinsics import store_float2, store_float4


def registers_of(head_dim: int) -> int:
    """What a thread may take so that nothing spills; `mixed` takes head_dim / 2, 64 at 256."""
    if head_dim <= 64:
        return 168
    return 208 if thread_count(head_dim) == 128 else 184


@cache
def _store(head_dim: int) -> Any:
    """store(total, mixed, out, first_token, end_token, group_size): the rows' sums, divided."""
    tm, n_quads, rest = thread_rows(head_dim), head_dim // 64, head_dim % 64 // COLUMNS
    row_sum, _ = row_sum_and_max()

    @cuda.jit(device=True, forceinline=True)
    def store(
        total: Any, mixed: Any, out: Any, first_token: Any, end_token: Any, group_size: Any
    ) -> None:
        first_row, column = cuda.threadIdx.x // COLUMNS * tm, cuda.threadIdx.x % COLUMNS
        for i in range(tm):
            whole = row_sum(total[i])
            token = first_token + (first_row + i) // group_size
            head = cuda.blockIdx.y * group_size + (first_row + i) % group_size
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
def _attend_run(head_dim: int, has_softcap: bool) -> Any:
    """attend_run(...): the rows of one sequence, `run` to `run_end`, against all keys they see."""
    tm = thread_rows(head_dim)
    scores, values = add_scores(head_dim), add_values(head_dim)
    weigh_tile = weigh(head_dim, has_softcap)

    @cuda.jit(device=True, forceinline=True)
    def attend_run(
        q: Any, q_at: Any, k_cache: Any, v_cache: Any, seq: Any, pos: Any, run: Any, run_end: Any,
        inner: Any, outer: Any, window: Any, stage: Any, weights: Any, row_last: Any,
        highest: Any, total: Any, mixed: Any,
    ) -> None:  # fmt: skip
        score = cuda.local.array((tm, TN), float32)
        row = int64(seq[run]) * k_cache.shape[1] + cuda.blockIdx.y
        base = row * k_cache.shape[2] * head_dim
        my_d = cuda.threadIdx.x // BM * HALVES_PER_LOAD
        last_key = pos[run_end - 1]
        for first_key in range(max(pos[run] + 1 - window, 0), last_key + 1, BN):
            my_key = min(first_key + cuda.threadIdx.x % BM, last_key)
            k_at = base + int64(my_key) * head_dim + my_d
            for i in range(tm):
                for j in range(TN):
                    score[i, j] = float32(0)
            scores(score, stage, q, q_at, k_cache, k_at, inner)
            weigh_tile(score, row_last, first_key, window, outer, highest, total, mixed, weights)
            values(weights, stage, v_cache, base, first_key, last_key, mixed)

    return attend_run


@cache
def _compile(head_dim: int, has_softcap: bool) -> Kernel:
    tm, td = thread_rows(head_dim), head_dim // COLUMNS
    attend_run, store = _attend_run(head_dim, has_softcap), _store(head_dim)
    n_stage, n_weights = stage_size(head_dim), BN * STRIDE

    def attention_prefill(
        q: Any, k_cache: Any, v_cache: Any, seq: Any, pos: Any, inner: Any, outer: Any,
        window: Any, out: Any,
    ) -> None:  # fmt: skip
        stage = cuda.shared.array(n_stage, float32, alignment=16)
        weights = cuda.shared.array(n_weights, float32, alignment=16)
        row_last = cuda.shared.array(BM, int32)
        highest, total = cuda.local.array(tm, float32), cuda.local.array(tm, float32)
        mixed = cuda.local.array((tm, td), float32)
        for i in range(tm):
            highest[i], total[i] = LOWEST, float32(0)
            for d in range(td):
                mixed[i, d] = float32(0)

        group_size = q.shape[1] // k_cache.shape[1]
        tile_tokens = BM // group_size
        first_token = (cuda.gridDim.x - 1 - cuda.blockIdx.x) * tile_tokens
        end_token = min(first_token + tile_tokens, q.shape[0])
        thread = cuda.threadIdx.x
        my_token = first_token + thread % BM // group_size
        my_head = cuda.blockIdx.y * group_size + thread % BM % group_size
        q_row = int64(min(my_token, end_token - 1)) * q.shape[1] + my_head
        q_at = q_row * head_dim + thread // BM * HALVES_PER_LOAD

        run = first_token
        while run < end_token:
            run_end = run + 1
            while run_end < end_token and seq[run_end] == seq[run]:
                run_end += 1
            if thread < BM:
                row_last[thread] = pos[my_token] if run <= my_token < run_end else -1
            attend_run(
                q, q_at, k_cache, v_cache, seq, pos, run, run_end, inner, outer, window,
                stage, weights, row_last, highest, total, mixed,
            )  # fmt: skip
            run = run_end
        store(total, mixed, out, first_token, end_token, group_size)

    return Kernel(attention_prefill, registers=registers_of(head_dim))


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
    n_tokens, n_heads, head_dim = q.shape
    n_kv_heads = k_cache.shape[1]
    group_size = n_heads // n_kv_heads
    if group_size > BM:
        raise KernelContractError(f"q: expected groups of at most {BM} heads, got {group_size}")
    if n_tokens == 0:
        return
    stream.launch(
        _compile(head_dim, bool(softcap)),
        (ceil_div(n_tokens, BM // group_size), n_kv_heads), thread_count(head_dim),
        q, k_cache, v_cache, seq, pos, *score_factors(scale, softcap), window_keys(window), out,
    )  # fmt: skip
