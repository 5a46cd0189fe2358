"""Attention over the KV cache as an instruction: blocks share sequences, KV heads and key ranges.

The block works as one of attention_decode.py does, with 16 warps; see there for how. The newest key
and value come with the query, through the exchange; the block whose range they end rounds them to
FP16 and appends them.

attend_shape.py   who does what
attend_query.py   the query and the newest key and value, into shared memory
attend_keys.py    a block's range of the keys
attend_give.py    its sums, given
attend_splits.py  and merged, where the sequence is split over blocks

over the size law: `attention` is one function so that keys, queries and sums stay in registers.
"""

from functools import cache
from typing import Any

from numba import cuda, float32, int32, int64, uint32
from numba.cuda.types import float16

from m40llm.kernels.attention_common import HALVES_PER_LOAD
from m40llm.kernels.attention_keys import KEYS_IN_FLIGHT, keys_a_pass, lanes_per_key
from m40llm.kernels.bits import uint_as_float
from m40llm.kernels.program import words
from m40llm.kernels.program.attend_give import give_of, idle_of
from m40llm.kernels.program.attend_keys import load_keys_of, see_keys_of
from m40llm.kernels.program.attend_query import append_of, take_of
from m40llm.kernels.program.attend_shape import (
    merged_floats,
    pool_floats_of,
    split_of_keys,
    tile_heads,
    tiles_a_group,
)
from m40llm.kernels.program.attend_splits import give_splits_of
from m40llm.kernels.program.code import epoch_of, word_of
from m40llm.kernels.program.form import N_WARPS, Form
from m40llm.kernels.reduce import WARP_SIZE
from m40llm.kernels.views import UNSEEN, array_at, part_of


@cache
def attend_of(form: Form) -> Any:
    """attention(code, slot_pos, slot_seq, pool): the instruction code.this."""
    n_seqs, head_dim, n_kv_heads, n_q_heads = (
        *(form.n_seqs, form.head_dim, form.n_kv_heads, form.n_heads),
    )
    group_size, n_heads, n_tiles = n_q_heads // n_kv_heads, tile_heads(form), tiles_a_group(form)
    n_lanes, n_row_items = lanes_per_key(head_dim), n_kv_heads * n_tiles
    keys_a_load = WARP_SIZE // n_lanes
    block_keys = keys_a_pass(head_dim, N_WARPS)
    load_keys, take_query, append = load_keys_of(head_dim), take_of(form), append_of(form)
    see_keys, give_warps, give_idle = see_keys_of(form), give_of(form), idle_of(form)
    give_splits, split_of = give_splits_of(form), split_of_keys(block_keys)
    n_query, n_merged = n_heads * head_dim, merged_floats(n_heads, head_dim)
    fresh_at, merged_at = n_query, n_query + head_dim
    assert pool_floats_of(n_heads, head_dim) <= form.pool_floats, f"{form}: attention's pool"

    @cuda.jit(device=True, forceinline=True)
    def attention(code: Any, slot_pos: Any, slot_seq: Any, pool: Any) -> None:
        w = code.this
        highest = cuda.local.array(n_heads, float32)
        total = cuda.local.array(n_heads, float32)
        mixed = cuda.local.array((n_heads, HALVES_PER_LOAD), float32)
        k_now = cuda.local.array((KEYS_IN_FLIGHT, 4), uint32)
        v_now = cuda.local.array((KEYS_IN_FLIGHT, 4), uint32)
        k_then = cuda.local.array((KEYS_IN_FLIGHT, 4), uint32)
        v_then = cuda.local.array((KEYS_IN_FLIGHT, 4), uint32)
        shared_query = part_of(pool, 0, n_query, float32)
        fresh = part_of(pool, fresh_at, head_dim, uint32)
        merged = part_of(pool, merged_at, n_merged, float32)
        qkv, out = (
            array_at(w[words.X], (UNSEEN,), uint32),
            array_at(w[words.OUT], (UNSEEN,), uint32),
        )
        k_cache = array_at(w[words.K_CACHE], (UNSEEN,), float16)
        v_cache = array_at(w[words.V_CACHE], (UNSEEN,), float16)
        epoch = epoch_of(code, w[words.PC])
        x_epoch = epoch_of(code, w[words.X_WRITER])
        most_splits = word_of(w, words.N_SPLITS)
        partial = array_at(w[words.PARTIAL], (UNSEEN,), uint32)
        inner = uint_as_float(uint32(word_of(w, words.INNER)))
        thread = uint32(cuda.threadIdx.x)
        warp, lane = int32(thread >> uint32(5)), int32(thread & uint32(31))
        d = int32(uint32(lane) % uint32(n_lanes) * uint32(HALVES_PER_LOAD))
        lane_d = int32(d if d < head_dim else 0)
        key_lane = int32(uint32(lane) // uint32(n_lanes))
        item, n_items = int32(cuda.blockIdx.x), int32(most_splits * (n_row_items * n_seqs))
        while item < n_items:
            s = int32(uint32(item) % uint32(n_seqs))
            tile = int32(uint32(item) // uint32(n_seqs) % uint32(n_row_items))
            split = int32(uint32(item) // uint32(n_seqs * n_row_items))
            kv_head = int32(uint32(tile) // uint32(n_tiles))
            of_group = int32(uint32(tile) % uint32(n_tiles) * uint32(n_heads))
            first_head = int32(int32(kv_head * group_size) + of_group)
            end_head = min(int32(first_head + n_heads), int32((kv_head + 1) * group_size))
            pos = slot_pos[uint32(s)]
            end = int32(pos + 1)
            begin = max(int32(end - word_of(w, words.WINDOW)), int32(0))
            n_splits, split_keys = split_of(int32(end - begin), most_splits)
            if pos < 0:
                if split == 0:  # its row is waited for: what comes after counts on that
                    cuda.syncthreads()
                    take_query(
                        w, qkv, x_epoch, s, pos, kv_head, first_head, end_head, inner,
                        shared_query, fresh, merged,
                    )  # fmt: skip
                    give_idle(out, s, first_head, end_head, epoch)
            elif split < n_splits:
                begin += int32(split * split_keys)
                end = min(int32(begin + split_keys), end)
                row = (int64(slot_seq[s]) * n_kv_heads + kv_head) * w[words.MAX_SEQ_LEN]
                base = row * head_dim + lane_d
                of_warp = int32(begin + int32(warp * (KEYS_IN_FLIGHT * keys_a_load)))
                first_key = int32(of_warp + key_lane)
                for load in range(KEYS_IN_FLIGHT):
                    for word in range(4):
                        k_now[load, word], v_now[load, word] = uint32(0), uint32(0)
                        k_then[load, word], v_then[load, word] = uint32(0), uint32(0)
                last_key = int32(min(end, pos) - 1)
                load_keys(k_cache, v_cache, base, first_key, of_warp, last_key, k_now, v_now)
                load_keys(
                    k_cache, v_cache, base, int32(first_key + block_keys),
                    int32(of_warp + block_keys), last_key, k_then, v_then,
                )  # fmt: skip
                cuda.syncthreads()  # `pool` may still be read for what was before
                take_query(
                    w, qkv, x_epoch, s, pos, kv_head, first_head, end_head, inner,
                    shared_query, fresh, merged,
                )  # fmt: skip
                cuda.syncthreads()
                if split == int32(n_splits - 1) and of_group == 0:
                    append(k_cache, v_cache, (row + pos) * head_dim, fresh)
                for head in range(n_heads):
                    for i in range(HALVES_PER_LOAD):
                        mixed[head, i] = float32(0)
                see_keys(
                    k_cache, v_cache, base, first_key, end, pos, lane_d,
                    shared_query, fresh, k_now, v_now, k_then, v_then, highest, total, mixed,
                )  # fmt: skip
                give_warps(
                    highest, total, mixed, merged, out, partial,
                    s, first_head, end_head, split, n_splits, most_splits, epoch,
                )  # fmt: skip
                if n_splits > 1:
                    give_splits(
                        partial, out, s, first_head, end_head, split, n_splits, most_splits, epoch
                    )
            item += int32(cuda.gridDim.x)
        cuda.syncthreads()  # `pool` is free for the next instruction

    return attention
