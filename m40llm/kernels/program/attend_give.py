"""What an attention's block has summed up: from its warps' registers to whoever waits for it."""

import math
from functools import cache
from typing import Any

from numba import cuda, float32, int32, uint32

from m40llm.kernels.attention_common import HALVES_PER_LOAD
from m40llm.kernels.attention_keys import lanes_per_key
from m40llm.kernels.attention_merge import scatter_warp_of, scattered
from m40llm.kernels.program.attend_shape import tile_heads
from m40llm.kernels.program.attend_splits import part_row_of
from m40llm.kernels.program.exchange import give2
from m40llm.kernels.program.form import N_THREADS, N_WARPS, Form
from m40llm.kernels.reduce import WARP_SIZE, warp_max, warp_sum


@cache
def give_of(form: Form) -> Any:
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
def idle_of(form: Form) -> Any:
    """give_idle(out, s, first_head, end_head, epoch): zeros, of an idle sequence."""
    head_dim, half_dim, q_dim = form.head_dim, form.head_dim // 2, form.q_dim

    @cuda.jit(device=True, forceinline=True)
    def give_idle(out: Any, s: Any, first_head: Any, end_head: Any, epoch: Any) -> None:
        for i in range(cuda.threadIdx.x, (end_head - first_head) * half_dim, N_THREADS):
            at = s * q_dim + first_head * head_dim + 2 * i
            give2(out, at, float32(0), float32(0), epoch)

    return give_idle
