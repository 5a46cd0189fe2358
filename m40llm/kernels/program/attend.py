"""Attention over the KV cache as an instruction: blocks share sequences, KV heads and key ranges.

The block works as one of attention_decode.py does, with 16 warps; see there for the method. The
cache was written in this very launch, so it is not loaded through the read-only cache. How many
splits a sequence has depends on its length alone, and on the grid.
"""

from functools import cache
from typing import Any, Final

from numba import cuda, float32, int32, int64, uint32
from numba.cuda.types import float16

from m40llm.kernels.attention_common import HALVES_PER_LOAD, LOWEST
from m40llm.kernels.attention_keys import (
    attend_over,
    head_tile,
    keys_a_pass,
    lanes_per_key,
    query_loader,
)
from m40llm.kernels.attention_merge import MAX_SPLITS, merge_floats, merge_splits, merge_warps
from m40llm.kernels.contract import ceil_div
from m40llm.kernels.intrinsics import uint_as_float
from m40llm.kernels.program import words
from m40llm.kernels.program.form import N_THREADS, N_WARPS, Form
from m40llm.kernels.views import array_at, part_of

_UNSEEN: Final = 1 << 60  # elements of the cache, for a view of it
MIN_PASSES: Final = 2  # that a split takes: below, merging costs more than it saves


def split_shape(form: Form, n_blocks: int) -> tuple[int, int, int, int]:
    """Of `partial`: as attention_decode's."""
    n_tiles = form.n_kv_heads * tiles_a_group(form)
    n_splits = max(1, min(n_blocks // (n_tiles * form.n_seqs), MAX_SPLITS))
    return form.n_seqs, form.n_heads, n_splits, form.head_dim + 2


def tiles_a_group(form: Form) -> int:
    """Tiles of heads that share a KV head."""
    group_size = form.n_heads // form.n_kv_heads
    return ceil_div(group_size, head_tile(group_size))


@cache
def attend_of(form: Form) -> Any:
    """attention(w, pool): the instruction w."""
    n_seqs, head_dim, n_kv_heads, n_q_heads = (
        *(form.n_seqs, form.head_dim, form.n_kv_heads, form.n_heads),
    )
    group_size = n_q_heads // n_kv_heads
    n_heads, n_tiles = head_tile(group_size), tiles_a_group(form)
    n_lanes = lanes_per_key(head_dim)
    split_keys_unit = MIN_PASSES * keys_a_pass(head_dim, N_WARPS)
    attend = attend_over(head_dim, n_heads, False, N_WARPS, readonly=False)
    load_query = query_loader(head_dim, n_heads)
    merge_warp_sums = merge_warps(head_dim, n_heads, n_lanes, N_WARPS)
    merge_split_sums = merge_splits(head_dim, N_WARPS)
    n_merged, n_weights = merge_floats(head_dim, n_heads, N_WARPS), n_heads * MAX_SPLITS
    n_row_items = n_kv_heads * n_tiles
    idle_elements = n_q_heads * head_dim

    @cuda.jit(device=True, forceinline=True)
    def attention(w: Any, pool: Any) -> None:
        query = cuda.local.array((n_heads, HALVES_PER_LOAD), float32)
        highest = cuda.local.array(n_heads, float32)
        total = cuda.local.array(n_heads, float32)
        mixed = cuda.local.array((n_heads, HALVES_PER_LOAD), float32)
        shared = part_of(pool, 0, n_merged, float32)
        weights = part_of(pool, n_merged, n_weights, float32)
        ticket = part_of(pool, n_merged + n_weights, 1, int32)
        q = array_at(w[words.X], (n_seqs, n_q_heads, head_dim), float32)
        out = array_at(w[words.OUT], (n_seqs, n_q_heads, head_dim), float32)
        k_cache = array_at(w[words.K_CACHE], (_UNSEEN,), float16)
        v_cache = array_at(w[words.V_CACHE], (_UNSEEN,), float16)
        seq = array_at(w[words.SEQ], (n_seqs,), int32)
        row_pos = array_at(w[words.ROW_POS], (n_seqs,), int32)
        most_splits = int32(w[words.N_SPLITS])
        partial = array_at(
            w[words.PARTIAL], (n_seqs, n_q_heads, most_splits, head_dim + 2), float32
        )
        merged = array_at(w[words.MERGED], (n_seqs, n_q_heads), int32)
        inner = uint_as_float(uint32(w[words.INNER]))
        outer = uint_as_float(uint32(w[words.OUTER]))
        n_items = int32(most_splits * n_row_items * n_seqs)
        for item in range(int32(cuda.blockIdx.x), n_items, int32(cuda.gridDim.x)):
            s = item % n_seqs
            tile = item // n_seqs % n_row_items
            split = item // (n_seqs * n_row_items)
            end = row_pos[s] + 1
            if end == 0 and tile == 0 and split == 0:  # an idle sequence; nobody reads it
                for i in range(cuda.threadIdx.x, idle_elements, N_THREADS):
                    out[s, i // head_dim, i % head_dim] = float32(0)
            begin = max(end - int32(w[words.WINDOW]), int32(0))
            split_keys = (end - begin + most_splits - 1) // most_splits
            split_keys = (split_keys + split_keys_unit - 1) // split_keys_unit * split_keys_unit
            n_splits = int32(0)
            if split_keys > 0:
                n_splits = int32((end - begin + split_keys - 1) // split_keys)
            if split < n_splits:
                begin += split * split_keys
                end = min(begin + split_keys, end)
                kv_head = tile // n_tiles
                first_head = kv_head * group_size + tile % n_tiles * n_heads
                end_head = min(first_head + n_heads, (kv_head + 1) * group_size)
                load_query(query, q, s, first_head, end_head, inner)
                for head in range(n_heads):
                    highest[head], total[head] = LOWEST, float32(0)
                    for d in range(HALVES_PER_LOAD):
                        mixed[head, d] = float32(0)
                row = (int64(seq[s]) * n_kv_heads + kv_head) * w[words.MAX_SEQ_LEN]
                d = cuda.threadIdx.x % n_lanes * HALVES_PER_LOAD
                base = row * head_dim + (d if d < head_dim else 0)
                attend(query, k_cache, v_cache, base, begin, end, outer, highest, total, mixed)
                cuda.syncthreads()  # `shared` may still be read for the item before
                merge_warp_sums(
                    highest, total, mixed, partial, out, shared,
                    s, first_head, end_head, split, n_splits,
                )  # fmt: skip
                if n_splits > 1:
                    merge_split_sums(
                        partial, merged, out, ticket, weights,
                        s, tile, first_head, end_head, n_splits,
                    )  # fmt: skip

    return attention
