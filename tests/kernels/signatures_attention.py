"""Signatures of both attention kernels: every head_dim and tile of heads, capped or not."""

from numba import types
from sm52_assembly import F16_4, F32, F32_3, I8_4, I32, I32_1, I32_2, Signature

from m40llm.kernels import attention_decode, attention_merge, attention_prefill, attention_tiles
from m40llm.kernels.attention_common import HEAD_DIMS, QUANTS_PER_BLOCK, TINY_HEAD_DIMS

F32_4 = types.Array(types.float32, 4, "C")
_REST = (I32_1, I32_1, F32, F32, I32)
_INPUTS = (F32_3, F16_4, F16_4, *_REST)
_INPUTS_Q8 = (F32_3, I8_4, F16_4, I8_4, F16_4, *_REST)

_TILES = [(1, False), (2, True), (3, False), (4, False), (4, True)]
_BLOCKS_OF_32 = [head_dim for head_dim in HEAD_DIMS if head_dim % QUANTS_PER_BLOCK == 0]

SIGNATURES = (
    [
        Signature(
            attention_decode._compile(head_dim, n_heads, has_softcap),
            (*_INPUTS, F32_4, I32_2, F32_3),
            attention_merge.N_THREADS,
            f"{head_dim}-{n_heads}-{'cap' if has_softcap else 'plain'}",
        )
        for head_dim in TINY_HEAD_DIMS + HEAD_DIMS
        for n_heads, has_softcap in _TILES
    ]
    + [
        Signature(
            attention_prefill._compile(head_dim, has_softcap),
            (*_INPUTS, I32, F32_3),
            attention_tiles.N_THREADS,
            f"{head_dim}-{'cap' if has_softcap else 'plain'}",
        )
        for head_dim in HEAD_DIMS
        for has_softcap in (False, True)
    ]
    + [
        Signature(
            attention_decode._compile_q8(head_dim, n_heads, has_softcap),
            (*_INPUTS_Q8, F32_4, I32_2, F32_3),
            attention_merge.N_THREADS,
            f"{head_dim}-{n_heads}-{'cap' if has_softcap else 'plain'}",
        )
        for head_dim in _BLOCKS_OF_32
        for n_heads, has_softcap in _TILES
    ]
    + [
        Signature(
            attention_prefill._compile_q8(head_dim, has_softcap),
            (*_INPUTS_Q8, I32, F32_3),
            attention_tiles.N_THREADS,
            f"{head_dim}-{'cap' if has_softcap else 'plain'}",
        )
        for head_dim in _BLOCKS_OF_32
        for has_softcap in (False, True)
    ]
)
