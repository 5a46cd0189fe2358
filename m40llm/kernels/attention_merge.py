"""How sums of attention over different keys become one: log-sum-exp, as device functions.

A part i is (max_i, total_i, mixed_i): total_i = sum exp(score - max_i) over its keys, mixed_i the
same sum of weight * v. With max = max_i max_i and w_i = exp(max_i - max), the whole is
sum w_i mixed_i / sum w_i total_i. A part without keys has max LOWEST and zeros. Scores are in
units of ln 2, so exp is exp2.
"""

import math
from functools import cache
from typing import Any, Final

from numba import cuda, float32

from m40llm.kernels.attention_common import HALVES_PER_LOAD, LOWEST
from m40llm.kernels.last_block import comes_last
from m40llm.kernels.reduce import FULL_MASK, WARP_SIZE, warp_max, warp_sum

N_WARPS: Final = 4  # of a block; one for each head of a tile when splits are merged
N_THREADS: Final = N_WARPS * WARP_SIZE
MAX_SPLITS: Final = 128


@cache
def merge_warp_of(n_lanes: int, n_heads: int) -> Any:
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
def scatter_warp_of(n_lanes: int, n_heads: int) -> Any:
    """scatter_warp(highest, total, mixed) -> first: the groups of a warp's lanes become one, a
    part of it in each lane: mixed[head, i] is that of element first + i of the lane's 8, for
    i < scattered(n_lanes). Half of merge_warp's shuffles.
    """
    n_left = scattered(n_lanes)

    @cuda.jit(device=True, forceinline=True)
    def scatter_warp(highest: Any, total: Any, mixed: Any) -> Any:
        lane, first = cuda.threadIdx.x & 31, 0
        for head in range(n_heads):
            top, lane_bit = highest[head], n_lanes
            while lane_bit < WARP_SIZE:
                top = max(top, cuda.shfl_xor_sync(FULL_MASK, top, lane_bit))
                lane_bit *= 2
            shrink = math.exp2(highest[head] - top)
            highest[head] = top
            total[head] *= shrink
            lane_bit = n_lanes
            while lane_bit < WARP_SIZE:
                total[head] += cuda.shfl_xor_sync(FULL_MASK, total[head], lane_bit)
                lane_bit *= 2
            for d in range(HALVES_PER_LOAD):
                mixed[head, d] *= shrink
        half, lane_bit = HALVES_PER_LOAD // 2, WARP_SIZE // 2
        while lane_bit >= n_lanes and half >= n_left:
            is_upper = lane & lane_bit != 0
            first += half if is_upper else 0
            for head in range(n_heads):
                for i in range(half):
                    low, high = mixed[head, i], mixed[head, half + i]
                    given = low if is_upper else high
                    kept = high if is_upper else low
                    mixed[head, i] = kept + cuda.shfl_xor_sync(FULL_MASK, given, lane_bit)
            lane_bit //= 2
            half //= 2
        while lane_bit >= n_lanes:  # more groups than elements
            for head in range(n_heads):
                mixed[head, 0] += cuda.shfl_xor_sync(FULL_MASK, mixed[head, 0], lane_bit)
            lane_bit //= 2
        return first

    return scatter_warp


def scattered(n_lanes: int) -> int:
    """Elements that scatter_warp leaves a lane."""
    return max(HALVES_PER_LOAD * n_lanes // WARP_SIZE, 1)


def merge_floats(head_dim: int, n_heads: int, n_warps: int = N_WARPS) -> int:
    """Shared memory that merge_warps takes: each warp's sums, then maxima, then totals."""
    return n_heads * n_warps * (head_dim + 2)


@cache
def merge_warps(head_dim: int, n_heads: int, n_lanes: int, n_warps: int = N_WARPS) -> Any:
    """The block's sums, from its lanes' registers to `out`, or to `partial` if it is one of many.

    Each group of `n_lanes` lanes has seen other keys; lane i of a group holds elements 8i to 8i+7.
    shared  float32[merge_floats(...)]
    """
    merge_warp = merge_warp_of(n_lanes, n_heads)
    n_mixed, n_parts = n_heads * n_warps * head_dim, n_heads * n_warps

    @cuda.jit(device=True, forceinline=True)
    def merge_warps(
        highest: Any, total: Any, mixed: Any, partial: Any, out: Any, shared: Any,
        token: Any, first_head: Any, end_head: Any, split: Any, n_splits: Any,
    ) -> None:  # fmt: skip
        warp, lane = cuda.threadIdx.x // WARP_SIZE, cuda.threadIdx.x % WARP_SIZE
        merge_warp(highest, total, mixed)
        if lane * HALVES_PER_LOAD < head_dim:  # the first group of lanes
            for head in range(n_heads):
                for d in range(HALVES_PER_LOAD):
                    at = (head * n_warps + warp) * head_dim + lane * HALVES_PER_LOAD + d
                    shared[at] = mixed[head, d]
        if lane == 0:
            for head in range(n_heads):
                shared[n_mixed + head * n_warps + warp] = highest[head]
                shared[n_mixed + n_parts + head * n_warps + warp] = total[head]
        cuda.syncthreads()
        for element in range(
            cuda.threadIdx.x, (end_head - first_head) * head_dim, n_warps * WARP_SIZE
        ):
            head, d = element // head_dim, element % head_dim
            first = head * n_warps
            top = LOWEST
            for part in range(first, first + n_warps):
                top = max(top, shared[n_mixed + part])
            whole, mix = float32(0), float32(0)
            for part in range(first, first + n_warps):
                weight = math.exp2(shared[n_mixed + part] - top)
                whole += weight * shared[n_mixed + n_parts + part]
                mix += weight * shared[part * head_dim + d]
            if n_splits == 1:
                out[token, first_head + head, d] = mix / whole
            else:
                partial[token, first_head + head, split, d] = mix
                if d == 0:
                    partial[token, first_head + head, split, head_dim] = top
                    partial[token, first_head + head, split, head_dim + 1] = whole

    return merge_warps


@cache
def merge_splits(head_dim: int, n_warps: int = N_WARPS) -> Any:
    """The block that comes last combines what all have left in `partial`; the others return.

    tile     which of the row's counters in `arrived` is that of these heads
    ticket   shared int32[1]; weights  shared float32[heads of a tile * MAX_SPLITS]
    """

    @cuda.jit(device=True, forceinline=True)
    def merge_splits(
        partial: Any, arrived: Any, out: Any, ticket: Any, weights: Any,
        token: Any, tile: Any, first_head: Any, end_head: Any, n_splits: Any,
    ) -> None:  # fmt: skip
        if not comes_last(arrived, (token, tile), n_splits, ticket):
            return
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
                weights[warp * MAX_SPLITS + split] = weight
            whole = warp_sum(whole)
            for split in range(lane, n_splits, WARP_SIZE):
                weights[warp * MAX_SPLITS + split] /= whole
        cuda.syncthreads()
        for element in range(
            cuda.threadIdx.x, (end_head - first_head) * head_dim, n_warps * WARP_SIZE
        ):
            tile_head, d = element // head_dim, element % head_dim
            mix = float32(0)
            for split in range(n_splits):
                weight = weights[tile_head * MAX_SPLITS + split]
                mix += weight * partial[token, first_head + tile_head, split, d]
            out[token, first_head + tile_head, d] = mix

    return merge_splits
