"""How an attention is shared out: heads of a tile, key ranges of a sequence, shared memory.

How many splits a sequence has depends on its length alone, and on the grid.
"""

from functools import cache
from typing import Any, Final

from numba import cuda, int32, uint32

from m40llm.kernels.attention_merge import MAX_SPLITS
from m40llm.kernels.contract import ceil_div
from m40llm.kernels.program.form import N_WARPS, Form

KEYS_UNIT: Final = 32  # of which a split's keys are a multiple
MIN_PASSES: Final = 2  # that a split takes: below, merging costs more than it saves
_MAX_HEADS: Final = 2  # of a tile: four would be faster for long contexts, slower for short ones


def tile_heads(form: Form) -> int:
    """Heads that share a load of K and V: a power of two, of which some may be too many; as many
    as find room in shared memory when warps merge."""
    n_heads = min(1 << (form.n_heads // form.n_kv_heads - 1).bit_length(), _MAX_HEADS)
    while n_heads > 1 and pool_floats_of(n_heads, form.head_dim) > form.pool_floats:
        n_heads //= 2
    return n_heads


def merged_floats(n_heads: int, head_dim: int) -> int:
    """What warps merge: a sum, its maximum and its total of each, and the last two of all."""
    return n_heads * (N_WARPS * (head_dim + 2) + 2)


def pool_floats_of(n_heads: int, head_dim: int) -> int:
    """The query, the newest key and value, then what warps merge."""
    return n_heads * head_dim + head_dim + merged_floats(n_heads, head_dim)


def tiles_a_group(form: Form) -> int:
    """Tiles of heads that share a KV head."""
    return ceil_div(form.n_heads // form.n_kv_heads, tile_heads(form))


def split_shape(form: Form, n_blocks: int) -> tuple[int, int, int, int, int]:
    """Of `partial`: [n_seqs, n_heads, n_splits, head_dim + 2] numbers, in exchange words."""
    n_tiles = form.n_kv_heads * tiles_a_group(form)
    n_splits = max(1, min(n_blocks // (n_tiles * form.n_seqs), MAX_SPLITS))
    return form.n_seqs, form.n_heads, n_splits, form.head_dim + 2, 2


@cache
def split_of_keys(block_keys: int) -> Any:
    """split_of(n_keys, most_splits) -> (n_splits, keys of a split but the last). block_keys: a
    pass's. Few keys are one split, with no division."""
    least_keys = MIN_PASSES * block_keys
    assert least_keys % KEYS_UNIT == 0

    @cuda.jit(device=True, forceinline=True)
    def split_of(n_keys: Any, most_splits: Any) -> Any:
        n_splits, split_keys = int32(min(n_keys, 1)), int32(least_keys)
        if n_keys > least_keys:
            most = uint32(most_splits)
            split_keys = int32(uint32(uint32(n_keys) + most - uint32(1)) // most)
            split_keys = int32(int32(split_keys + KEYS_UNIT - 1) & ~(KEYS_UNIT - 1))
            split_keys = max(split_keys, int32(least_keys))
            some = uint32(split_keys)
            n_splits = int32(uint32(uint32(n_keys) + some - uint32(1)) // some)
        return n_splits, split_keys

    return split_of
