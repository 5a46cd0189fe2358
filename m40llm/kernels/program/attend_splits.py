"""The end of an attention that is split over blocks: who comes last makes one of all parts.

Parts lie in plain device memory, so that there is a fence on either side of the counter of those
that have come; see attention_merge.py for the sums.
"""

import math
from functools import cache
from typing import Any

from numba import cuda, float32, int32, uint32

from m40llm.kernels.attention_common import LOWEST
from m40llm.kernels.attention_merge import MAX_SPLITS
from m40llm.kernels.program import words
from m40llm.kernels.program.exchange import give2
from m40llm.kernels.program.form import N_THREADS, Form
from m40llm.kernels.reduce import WARP_SIZE, warp_max, warp_sum
from m40llm.kernels.views import array_at, part_of


@cache
def give_splits_of(form: Form, n_tile_heads: int) -> Any:
    """give_splits(w, pool, at, s, tile, first_head, end_head, n_splits, epoch)

    at  the first of n_tile_heads * MAX_SPLITS + 1 floats of the pool that are free
    """
    n_seqs, n_q_heads, head_dim = form.n_seqs, form.n_heads, form.head_dim
    half_dim, q_dim, n_weights = head_dim // 2, form.q_dim, n_tile_heads * MAX_SPLITS

    @cuda.jit(device=True, forceinline=True)
    def is_last(w: Any, ticket: Any, s: Any, tile: Any, n_splits: Any) -> Any:
        merged = array_at(w[words.MERGED], (n_seqs, n_q_heads), int32)
        cuda.threadfence()  # what this thread wrote, before the block's ticket
        cuda.syncthreads()
        if cuda.threadIdx.x == 0:
            ticket[0] = cuda.atomic.add(merged, (s, tile), 1)
        cuda.syncthreads()
        last = ticket[0] == n_splits - 1
        if last:
            if cuda.threadIdx.x == 0:
                merged[s, tile] = 0  # for the next time
            cuda.threadfence()
        return last

    @cuda.jit(device=True, forceinline=True)
    def weigh(parts: Any, weights: Any, tile_head: Any, n_splits: Any) -> None:
        lane = int32(cuda.threadIdx.x & 31)
        top, whole = LOWEST, float32(0)
        for split in range(lane, n_splits, WARP_SIZE):
            top = max(top, parts[split, head_dim])
        top = warp_max(top)
        for split in range(lane, n_splits, WARP_SIZE):
            weight = math.exp2(parts[split, head_dim] - top)
            whole += weight * parts[split, head_dim + 1]
            weights[tile_head * MAX_SPLITS + split] = weight
        whole = warp_sum(whole)
        for split in range(lane, n_splits, WARP_SIZE):
            weights[tile_head * MAX_SPLITS + split] /= whole

    @cuda.jit(device=True, forceinline=True)
    def give_splits(
        w: Any, pool: Any, at: Any, s: Any, tile: Any, first_head: Any, end_head: Any,
        n_splits: Any, epoch: Any,
    ) -> None:  # fmt: skip
        weights = part_of(pool, at, n_weights, float32)
        ticket = part_of(pool, at + n_weights, 1, int32)
        shape = (n_seqs, n_q_heads, int32(w[words.N_SPLITS]), head_dim + 2)
        partial = array_at(w[words.PARTIAL], shape, float32)
        out = array_at(w[words.OUT], (n_seqs * q_dim * 2,), uint32)
        if is_last(w, ticket, s, tile, n_splits):
            warp = int32(cuda.threadIdx.x >> 5)
            if warp < end_head - first_head:
                weigh(partial[s, first_head + warp], weights, warp, n_splits)
            cuda.syncthreads()
            for i in range(cuda.threadIdx.x, (end_head - first_head) * half_dim, N_THREADS):
                tile_head, d = i // half_dim, i % half_dim
                head = first_head + tile_head
                mix_0, mix_1 = float32(0), float32(0)
                for split in range(n_splits):
                    weight = weights[tile_head * MAX_SPLITS + split]
                    mix_0 += weight * partial[s, head, split, 2 * d]
                    mix_1 += weight * partial[s, head, split, 2 * d + 1]
                give2(out, s * q_dim + head * head_dim + 2 * d, mix_0, mix_1, epoch)

    return give_splits
