"""RoPE, and the append to one layer's KV cache in Q8_0: rope_append of rope.py, in blocks.

A block is 32 elements x of a head, as gguf.quants has them (ggml's quantize_row_q8_0):

    d = max |x| / 127     quant = round(x * (1 / d)), halves away from zero     scale = FP16(d)

d is 65,504, FP16's largest number, where it would be more; a quant is then at most 127 of its
sign. 1 / d is 0 where FP32 cannot hold it: the scale is 0 as well. NaN makes the scale NaN, so that
damage is seen.

q                   float32[n_tokens, n_heads, head_dim]         turned in place
k, v                float32[n_tokens, n_kv_heads, head_dim]      only read
k_quants, v_quants  int8[n_seqs, n_kv_heads, max_seq_len, head_dim], offsets 64-bit
k_scales, v_scales  float16[n_seqs, n_kv_heads, max_seq_len, head_dim / 32]
seq, pos            int32[n_tokens], within the cache and the table; no two rows the same
cos, sin            float32[max_seq_len or more, rope_dim / 2], a table made on the host
grid                (n_tokens, heads / 4), a warp a head, a lane an element of a block; heads are
                    q's, then k's, v's
bytes               8 * |q| + 81/16 * (|k| + |v|), and the table's rows
GM200               at most 40 registers: 1536 threads an SM
"""

from functools import cache
from typing import Any, Final

import numpy as np
from numba import cuda, float32, int8, int32
from numba.cuda.types import float16

from m40llm.kernels.attention_common import QUANTS_PER_BLOCK, check_q8_cache
from m40llm.kernels.bits import LARGEST_HALF
from m40llm.kernels.contract import Kernel, Launcher
from m40llm.kernels.reduce import FULL_MASK, WARP_SIZE, warp_max
from m40llm.kernels.rope import (
    HEADS_PER_BLOCK,
    MAX_REGISTERS,
    check_rows,
    launch_heads,
    rotate_of,
    turned,
)

assert QUANTS_PER_BLOCK == WARP_SIZE
# At 2^-128 the reciprocal is 2^128, which FP32 does not have.
_LEAST: Final = np.float32(2.0**-128)


@cache
def _turned_element_of(layout: str) -> Any:
    """element(x, cos, sin, d): element d of x [head_dim], turned."""

    @cuda.jit(device=True)
    def interleaved(x: Any, cos: Any, sin: Any, d: Any) -> Any:
        if d >= 2 * cos.size:
            return x[d]
        pair = d >> 1
        first, second = turned(x[2 * pair], x[2 * pair + 1], cos[pair], sin[pair])
        return second if d & 1 else first

    @cuda.jit(device=True)
    def half(x: Any, cos: Any, sin: Any, d: Any) -> Any:
        if d >= 2 * cos.size:
            return x[d]
        pair = d if d < cos.size else d - cos.size
        first, second = turned(x[pair], x[pair + cos.size], cos[pair], sin[pair])
        return first if d < cos.size else second

    return {"interleaved": interleaved, "half": half}[layout]


@cuda.jit(device=True)
def _put_block(x: Any, quants: Any, scales: Any, block: Any) -> None:
    """A lane's element x becomes part of the warp's block of a head."""
    d = min(warp_max(abs(x)) / float32(127), float32(LARGEST_HALF))
    inverse = float32(0)
    if d > _LEAST:
        inverse = float32(1) / d
    # Between the product and the difference stands a choice, so that they are not fused.
    magnitude = abs(x * inverse)
    if not magnitude < float32(127):
        magnitude = float32(127)
    whole = int32(magnitude)
    if magnitude - float32(whole) >= float32(0.5):
        whole += int32(1)
    if cuda.any_sync(FULL_MASK, x != x):
        d = float32(np.nan)
    quants[block * WARP_SIZE + cuda.threadIdx.x] = int8(-whole if x < float32(0) else whole)
    if cuda.threadIdx.x == 0:
        scales[block] = float16(d)


@cache
def _compile(layout: str) -> Kernel:
    rotate, element = rotate_of(layout, is_cached=False), _turned_element_of(layout)

    def rope_append_q8(
        q: Any, k: Any, v: Any, k_quants: Any, k_scales: Any, v_quants: Any, v_scales: Any,
        seq: Any, pos: Any, cos: Any, sin: Any,
    ) -> None:  # fmt: skip
        token, lane = cuda.blockIdx.x, cuda.threadIdx.x
        head = cuda.blockIdx.y * int32(HEADS_PER_BLOCK) + cuda.threadIdx.y
        n_heads, n_kv_heads, at, s = q.shape[1], k.shape[1], pos[token], seq[token]
        if at < 0:  # an idle row
            return
        if head < n_heads:
            rotate(q[token, head], q[token, head], cos[at], sin[at])
        elif head < n_heads + n_kv_heads:
            kv_head = head - n_heads
            mine = k[token, kv_head]
            for block in range(k.shape[2] // WARP_SIZE):
                x = element(mine, cos[at], sin[at], block * WARP_SIZE + lane)
                _put_block(x, k_quants[s, kv_head, at], k_scales[s, kv_head, at], block)
        elif head < n_heads + 2 * n_kv_heads:
            kv_head = head - n_heads - n_kv_heads
            for block in range(v.shape[2] // WARP_SIZE):
                x = v[token, kv_head, block * WARP_SIZE + lane]
                _put_block(x, v_quants[s, kv_head, at], v_scales[s, kv_head, at], block)

    return Kernel(rope_append_q8, registers=MAX_REGISTERS)


def rope_append_q8(
    q: Any,
    k: Any,
    v: Any,
    k_quants: Any,
    k_scales: Any,
    v_quants: Any,
    v_scales: Any,
    seq: Any,
    pos: Any,
    cos: Any,
    sin: Any,
    layout: str,
    *,
    stream: Launcher,
) -> None:
    """Turn q in place; turn k and append it and v to one layer's cache at (seq[t], pos[t]), if it
    is none of an idle row, at -1."""
    n_tokens, n_heads, cache_shape = check_rows(q, k, v, seq, pos, cos, sin, layout)
    check_q8_cache((k_quants, k_scales), (v_quants, v_scales), cache_shape)
    args = (q, k, v, k_quants, k_scales, v_quants, v_scales, seq, pos, cos, sin)
    launch_heads(_compile(layout), n_tokens, n_heads, stream, *args)
