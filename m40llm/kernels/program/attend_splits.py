"""The end of an attention that is split over blocks: each block merges a share of the outputs.

All parts go through the exchange, like any vector; the blocks of a sequence's heads share the
pairs of elements, a warp a pair, a part a lane. Where there is more than one split, no block has
more than one: so none waits for what it is to give itself. See attention_merge.py for the sums.
"""

import math
from functools import cache
from typing import Any

from numba import cuda, float32, int32, uint32

from m40llm.kernels.attention_common import LOWEST
from m40llm.kernels.program.exchange import give2, take2_twice
from m40llm.kernels.program.form import N_WARPS, Form
from m40llm.kernels.reduce import WARP_SIZE, warp_max, warp_sum


@cache
def part_row_of(form: Form) -> Any:
    """part_row(s, head, split, most_splits): the first number of a part in `partial`: head_dim
    of the mix, then the maximum and the total."""
    n_q_heads, row_numbers = form.n_heads, form.head_dim + 2

    @cuda.jit(device=True, forceinline=True)
    def part_row(s: Any, head: Any, split: Any, most_splits: Any) -> Any:
        return int32(((s * n_q_heads + head) * most_splits + split) * row_numbers)

    return part_row


@cache
def give_splits_of(form: Form) -> Any:
    """give_splits(partial, out, s, first_head, end_head, split, n_splits, most_splits, epoch)"""
    head_dim, half_dim, q_dim = form.head_dim, form.head_dim // 2, form.q_dim
    part_row = part_row_of(form)

    @cuda.jit(device=True, forceinline=True)
    def give_splits(
        partial: Any, out: Any, s: Any, first_head: Any, end_head: Any,
        split: Any, n_splits: Any, most_splits: Any, epoch: Any,
    ) -> None:  # fmt: skip
        warp, lane = int32(cuda.threadIdx.x >> 5), int32(cuda.threadIdx.x & 31)
        pair = int32(split + warp * n_splits)
        while pair < (end_head - first_head) * half_dim:
            tile_head = int32(uint32(pair) // uint32(half_dim))
            head, d = int32(first_head + tile_head), int32(2 * (pair - tile_head * half_dim))
            top, whole, mix_0, mix_1 = float32(LOWEST), float32(0), float32(0), float32(0)
            part = lane
            while part < n_splits:
                row = part_row(s, head, part, most_splits)
                its_0, its_1, its_top, its_whole = take2_twice(
                    partial, int32(row + d), int32(row + head_dim), epoch
                )
                higher = max(top, its_top)
                shrink, weight = math.exp2(top - higher), math.exp2(its_top - higher)
                whole = whole * shrink + its_whole * weight
                mix_0 = mix_0 * shrink + its_0 * weight
                mix_1 = mix_1 * shrink + its_1 * weight
                top = higher
                part = int32(part + WARP_SIZE)
            weight = math.exp2(top - warp_max(top))
            whole = warp_sum(whole * weight)
            mix_0, mix_1 = warp_sum(mix_0 * weight), warp_sum(mix_1 * weight)
            if lane == 0:
                give2(out, s * q_dim + head * head_dim + d, mix_0 / whole, mix_1 / whole, epoch)
            pair = int32(pair + N_WARPS * n_splits)

    return give_splits
