"""Rotary position embedding: each pair of a head's elements turns by its angle at `pos`.

(a, b) -> (a cos - b sin, a sin + b cos), for the pairs d of the first rope_dim elements:
layout "interleaved": elements (2d, 2d + 1); "half": elements (d, d + rope_dim / 2).

rope          x float32[n_tokens, n_heads, head_dim], in place
rope_append   q the same, in place; k is turned and, with v, appended to one layer's KV cache:
              cache[seq[t], h, pos[t]] = k[t, h], rounded to FP16 once (nearest, ties to even);
              65,504 of its sign where it is beyond: infinity would make NaN of all attention

q             float32[n_tokens, n_heads, head_dim]
k, v          float32[n_tokens, n_kv_heads, head_dim], only read
caches        float16[n_seqs, n_kv_heads, max_seq_len, head_dim], offsets 64-bit
seq, pos      int32[n_tokens], within the cache and the table; no two rows the same
cos, sin      float32[max_seq_len or more, rope_dim / 2], a table made on the host
grid          (n_tokens, heads / 4), a warp a head; rope_append's heads are q's, then k's, v's
bytes         8 * |q| + 6 * |k| + 6 * |v|, and the table's rows
GM200         at most 40 registers: 1536 threads an SM
"""

from functools import cache
from typing import Any, Final

import numpy as np
from numba import cuda, int32
from numba.cuda.types import float16

from m40llm.errors import KernelContractError
from m40llm.kernels.bits import within_half
from m40llm.kernels.contract import Kernel, Launcher, ceil_div, check_array
from m40llm.kernels.reduce import WARP_SIZE

ROPE_LAYOUTS: Final = ("half", "interleaved")
HEADS_PER_BLOCK: Final = 4
MAX_REGISTERS: Final = 40


@cuda.jit(device=True)
def turned(a: Any, b: Any, cos: Any, sin: Any) -> Any:
    """A pair, by its angle."""
    return a * cos - b * sin, a * sin + b * cos


@cache
def rotate_of(layout: str, *, is_cached: bool) -> Any:
    """rotate(x, out, cos, sin): out[:rope_dim] = x turned; x, out [head_dim] may be the same; one
    warp. is_cached: out is FP16, and what is beyond its range becomes its largest number."""

    @cuda.jit(device=True)
    def put(out: Any, first: Any, second: Any, a: Any, b: Any) -> None:
        out[first] = within_half(a) if is_cached else a
        out[second] = within_half(b) if is_cached else b

    @cuda.jit(device=True)
    def rotate_interleaved(x: Any, out: Any, cos: Any, sin: Any) -> None:
        for pair in range(cuda.threadIdx.x, cos.size, WARP_SIZE):
            a, b = turned(x[2 * pair], x[2 * pair + 1], cos[pair], sin[pair])
            put(out, 2 * pair, 2 * pair + 1, a, b)

    @cuda.jit(device=True)
    def rotate_half(x: Any, out: Any, cos: Any, sin: Any) -> None:
        for pair in range(cuda.threadIdx.x, cos.size, WARP_SIZE):
            a, b = turned(x[pair], x[pair + cos.size], cos[pair], sin[pair])
            put(out, pair, pair + cos.size, a, b)

    return {"interleaved": rotate_interleaved, "half": rotate_half}[layout]


@cuda.jit(device=True)
def _copy(x: Any, out: Any, first: Any) -> None:
    """out[first:] = x[first:], FP16; one warp."""
    for d in range(first + cuda.threadIdx.x, x.size, WARP_SIZE):
        out[d] = float16(within_half(x[d]))


@cache
def _compile(layout: str) -> Kernel:
    rotate = rotate_of(layout, is_cached=False)

    def rope_kernel(x: Any, pos: Any, cos: Any, sin: Any) -> None:
        token = cuda.blockIdx.x
        head = cuda.blockIdx.y * int32(HEADS_PER_BLOCK) + cuda.threadIdx.y
        if head < x.shape[1]:
            rotate(x[token, head], x[token, head], cos[pos[token]], sin[pos[token]])

    return Kernel(rope_kernel, registers=MAX_REGISTERS)


@cache
def _compile_append(layout: str) -> Kernel:
    rotate, append_turned = (rotate_of(layout, is_cached=c) for c in (False, True))

    def rope_append_kernel(
        q: Any, k: Any, v: Any, k_cache: Any, v_cache: Any, seq: Any, pos: Any, cos: Any, sin: Any
    ) -> None:
        token = cuda.blockIdx.x
        head = cuda.blockIdx.y * int32(HEADS_PER_BLOCK) + cuda.threadIdx.y
        n_heads, n_kv_heads = q.shape[1], k.shape[1]
        at = pos[token]
        if at < 0:  # an idle row
            return
        if head < n_heads:
            rotate(q[token, head], q[token, head], cos[at], sin[at])
        elif head < n_heads + n_kv_heads:
            kv_head = head - n_heads
            cached = k_cache[seq[token], kv_head, at]
            append_turned(k[token, kv_head], cached, cos[at], sin[at])
            _copy(k[token, kv_head], cached, 2 * cos.shape[1])
        elif head < n_heads + 2 * n_kv_heads:
            kv_head = head - n_heads - n_kv_heads
            _copy(v[token, kv_head], v_cache[seq[token], kv_head, at], 0)

    return Kernel(rope_append_kernel, registers=MAX_REGISTERS)


def rope(x: Any, pos: Any, cos: Any, sin: Any, layout: str, *, stream: Launcher) -> None:
    """Turn x [n_tokens, n_heads, head_dim] to positions pos[t], in place."""
    check_array("x", x, np.float32, (None, None, None))
    check_array("pos", pos, np.int32, (x.shape[0],))
    _check_table(cos, sin, layout, x.shape[2])
    launch_heads(_compile(layout), x.shape[0], x.shape[1], stream, x, pos, cos, sin)


def rope_append(
    q: Any,
    k: Any,
    v: Any,
    k_cache: Any,
    v_cache: Any,
    seq: Any,
    pos: Any,
    cos: Any,
    sin: Any,
    layout: str,
    *,
    stream: Launcher,
) -> None:
    """Turn q in place; turn k and append it and v to one layer's cache at (seq[t], pos[t]). A row
    at position -1 is idle: nothing of it changes, nothing is appended."""
    n_tokens, n_heads, cache_shape = check_rows(q, k, v, seq, pos, cos, sin, layout)
    check_array("k_cache", k_cache, np.float16, cache_shape)
    check_array("v_cache", v_cache, np.float16, k_cache.shape)
    args = (q, k, v, k_cache, v_cache, seq, pos, cos, sin)
    launch_heads(_compile_append(layout), n_tokens, n_heads, stream, *args)


def check_rows(
    q: Any, k: Any, v: Any, seq: Any, pos: Any, cos: Any, sin: Any, layout: str
) -> tuple[int, int, tuple[int | None, ...]]:
    """(tokens, heads of q, k and v together, shape of a cache for them); KernelContractError for
    what is no rows to be turned and appended."""
    check_array("q", q, np.float32, (None, None, None))
    n_tokens, n_heads, head_dim = q.shape
    check_array("k", k, np.float32, (n_tokens, None, head_dim))
    n_kv_heads = k.shape[1]
    check_array("v", v, np.float32, k.shape)
    check_array("seq", seq, np.int32, (n_tokens,))
    check_array("pos", pos, np.int32, (n_tokens,))
    _check_table(cos, sin, layout, head_dim)
    return n_tokens, n_heads + 2 * n_kv_heads, (None, n_kv_heads, None, head_dim)


def _check_table(cos: Any, sin: Any, layout: str, head_dim: int) -> None:
    """KernelContractError unless these are a table for heads of this size."""
    check_array("cos", cos, np.float32, (None, None))
    check_array("sin", sin, np.float32, cos.shape)
    if layout not in ROPE_LAYOUTS:
        raise KernelContractError(f"layout: expected one of {list(ROPE_LAYOUTS)}, got {layout!r}")
    if 2 * cos.shape[1] > head_dim:
        raise KernelContractError(f"cos: {cos.shape[1]} pairs, more than head_dim {head_dim} has")


def launch_heads(kernel: Kernel, n_tokens: int, n_heads: int, stream: Launcher, *args: Any) -> None:
    """A warp for each head of each token."""
    if n_tokens and n_heads:
        grid = (n_tokens, ceil_div(n_heads, HEADS_PER_BLOCK))
        stream.launch(kernel, grid, (WARP_SIZE, HEADS_PER_BLOCK), *args)
