"""How sums of attention over different keys become one: log-sum-exp, as device functions.

A part i is (max_i, total_i, mixed_i): total_i = sum exp(score - max_i) over its keys, mixed_i the
same sum of weight * v. With max = max_i max_i and w_i = exp(max_i - max), the whole is
sum w_i mixed_i / sum w_i total_i. A part without keys has max LOWEST and zeros. Scores are in
units of ln 2, so exp is exp2.
"""

import math
from functools import cache
from typing import Any, Final

from numba import cuda, float32, int32

from m40llm.kernels.attention_common import HALVES_PER_LOAD, LOWEST
from m40llm.kernels.reduce import FULL_MASK, WARP_SIZE, warp_max, warp_sum

N_WARPS: Final = 4  # of a block; one for each head of a tile when splits are merged
N_THREADS: Final = N_WARPS * WARP_SIZE
MAX_SPLITS: Final = 128


@cache
def _merge_warp(n_lanes: int, n_heads: int) -> Any:
    """merge_warp(highest, total, mixed): the groups of a warp's lanes become one, in each lane."""

    @cuda.jit(device=True, forceinline=True)
    def merge_warp(highest: Any, total: Any, mixed: Any) -> None:
        lane_bit = n_lanes
        while lane_bit < WARP_SIZE:
            for head in range(n_heads):
                other = cuda.shfl_xor_sync(FULL_MASK, highest[head], lane_bit)
                top = max(highest[head], other)
                shrink = math.exp2(highest[head] - top)
                highest[head] = top
                total[head] *= shrink
                total[head] += cuda.shfl_xor_sync(FULL_MASK, total[head], lane_bit)
                for d in range(HALVES_PER_LOAD):
                    mixed[head, d] *= shrink
                    mixed[head, d] += cuda.shfl_xor_sync(FULL_MASK, mixed[head, d], lane_bit)
            lane_bit *= 2

    return merge_warp


@cache
def merge_warps(head_dim: int, n_heads: int, n_lanes: int) -> Any:
    """The block's sums, from its lanes' registers to `out`, or to `partial` if it is one of many.

    Each group of `n_lanes` lanes has seen other keys; lane i of a group holds elements 8i to 8i+7.
    """
    merge_warp = _merge_warp(n_lanes, n_heads)

    @cuda.jit(device=True, forceinline=True)
    def merge_warps(
        highest: Any, total: Any, mixed: Any, partial: Any, out: Any,
        token: Any, first_head: Any, end_head: Any, split: Any, n_splits: Any,
    ) -> None:  # fmt: skip
        warp_highest = cuda.shared.array((n_heads, N_WARPS), float32)
        warp_total = cuda.shared.array((n_heads, N_WARPS), float32)
        warp_mixed = cuda.shared.array((N_WARPS, n_heads, head_dim), float32)
        warp, lane = cuda.threadIdx.x // WARP_SIZE, cuda.threadIdx.x % WARP_SIZE
        merge_warp(highest, total, mixed)
        if lane * HALVES_PER_LOAD < head_dim:  # the first group of lanes
            for head in range(n_heads):
                for d in range(HALVES_PER_LOAD):
                    warp_mixed[warp, head, lane * HALVES_PER_LOAD + d] = mixed[head, d]
        if lane == 0:
            for head in range(n_heads):
                warp_highest[head, warp] = highest[head]
                warp_total[head, warp] = total[head]
        cuda.syncthreads()
        for element in range(cuda.threadIdx.x, (end_head - first_head) * head_dim, N_THREADS):
            head, d = element // head_dim, element % head_dim
            top = LOWEST
            for part in range(N_WARPS):
                top = max(top, warp_highest[head, part])
            whole, mix = float32(0), float32(0)
            for part in range(N_WARPS):
                weight = math.exp2(warp_highest[head, part] - top)
                whole += weight * warp_total[head, part]
                mix += weight * warp_mixed[part, head, d]
            if n_splits == 1:
                out[token, first_head + head, d] = mix / whole
            else:
                partial[token, first_head + head, split, d] = mix
                if d == 0:
                    partial[token, first_head + head, split, head_dim] = top
                    partial[token, first_head + head, split, head_dim + 1] = whole

    return merge_warps


@cache
def merge_splits(head_dim: int, n_heads: int) -> Any:
    """The block that comes last combines what all have left in `partial`; the others return."""

    @cuda.jit(device=True, forceinline=True)
    def merge_splits(
        partial: Any, arrived: Any, out: Any,
        token: Any, first_head: Any, end_head: Any, n_splits: Any,
    ) -> None:  # fmt: skip
        ticket = cuda.shared.array(1, int32)
        weights = cuda.shared.array((N_WARPS, MAX_SPLITS), float32)
        cuda.threadfence()  # what this thread wrote, before the block's ticket
        cuda.syncthreads()
        if cuda.threadIdx.x == 0:
            ticket[0] = cuda.atomic.add(arrived, (token, cuda.blockIdx.y), 1)
        cuda.syncthreads()
        if ticket[0] != n_splits - 1:
            return
        cuda.threadfence()
        if cuda.threadIdx.x == 0:
            arrived[token, cuda.blockIdx.y] = 0  # for the next launch

        warp, lane = cuda.threadIdx.x // WARP_SIZE, cuda.threadIdx.x % WARP_SIZE
        if warp < end_head - first_head:
            head = first_head + warp
            top, whole = LOWEST, float32(0)
            for split in range(lane, n_splits, WARP_SIZE):
                top = max(top, partial[token, head, split, head_dim])
            top = warp_max(top)
            for split in range(lane, n_splits, WARP_SIZE):
                weight = math.exp2(partial[token, head, split, head_dim] - top)
                whole += weight * partial[token, head, split, head_dim + 1]
                weights[warp, split] = weight
            whole = warp_sum(whole)
            for split in range(lane, n_splits, WARP_SIZE):
                weights[warp, split] /= whole
        cuda.syncthreads()
        for element in range(cuda.threadIdx.x, (end_head - first_head) * head_dim, N_THREADS):
            tile_head, d = element // head_dim, element % head_dim
            mix = float32(0)
            for split in range(n_splits):
                mix += weights[tile_head, split] * partial[token, first_head + tile_head, split, d]
            out[token, first_head + tile_head, d] = mix

    return merge_splits
