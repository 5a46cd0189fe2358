"""Signatures of both attention kernels: every head_dim and tile of heads, capped or not."""

from numba import types
from signature import F16_4, F32, F32_3, I8_4, I32, I32_1, I32_2, Signature

from m40llm.kernels import attention_decode, attention_merge, attention_prefill, attention_tiles
from m40llm.kernels.attention_common import HEAD_DIMS, QUANTS_PER_BLOCK, TINY_HEAD_DIMS

F32_4 = types.Array(types.float32, 4, "C")
_REST = (I32_1, I32_1, F32, F32, I32)
_INPUTS = (F32_3, F16_4, F16_4, *_REST)
_INPUTS_Q8 = (F32_3, I8_4, F16_4, I8_4, F16_4, *_REST)

_TILES = [(1, False), (2, True), (3, False), (4, False), (4, True)]
_BLOCKS_OF_32 = [head_dim for head_dim in HEAD_DIMS if head_dim % QUANTS_PER_BLOCK == 0]

# How a kernel is compiled, what caches it takes, and for which head_dims.
_DECODE = (
    (attention_decode._compile, _INPUTS, TINY_HEAD_DIMS + HEAD_DIMS),
    (attention_decode._compile_q8, _INPUTS_Q8, _BLOCKS_OF_32),
)
_PREFILL = (
    (attention_prefill._compile, _INPUTS, HEAD_DIMS),
    (attention_prefill._compile_q8, _INPUTS_Q8, _BLOCKS_OF_32),
)

SIGNATURES = [
    Signature(
        compile_(head_dim, n_heads, has_softcap),
        (*inputs, F32_4, I32_2, F32_3),
        attention_merge.N_THREADS,
        f"{head_dim}-{n_heads}-{'cap' if has_softcap else 'plain'}",
    )
    for compile_, inputs, head_dims in _DECODE
    for head_dim in head_dims
    for n_heads, has_softcap in _TILES
] + [
    Signature(
        compile_(head_dim, has_softcap),
        (*inputs, I32, F32_3),
        attention_tiles.N_THREADS,
        f"{head_dim}-{'cap' if has_softcap else 'plain'}",
    )
    for compile_, inputs, head_dims in _PREFILL
    for head_dim in head_dims
    for has_softcap in (False, True)
]
