"""RMSNorm: y[t, c] = weight[c] * x[t, c] / sqrt(mean_c(x[t]^2) + eps), in three forms.

rms_norm         x, y float32[n_tokens, n_embd], weight float32[n_embd]; y may be x
add_rms_norm     x += residual first, in place, both float32[n_tokens, n_embd]; y may be residual
rms_norm_heads   x, y float32[n_tokens, n_heads, head_dim], weight float32[head_dim], a norm a
                 head (Q/K norms); y may be x

sums      FP32: each thread adds its columns in order, then pairwise over the warp, then by warp
grid      one block a token; heads: one warp a head. No size need be a multiple of anything:
          a width of no multiple of 4, or over 8,192, is read a column at a time, and twice
align     16 bytes where n_embd is a multiple of 4
bytes     8 * n_tokens * n_embd + 4 * n_embd, the fused form twice that   (bandwidth-bound)
shared    128 bytes; heads: none
GM200     at most 32 registers: 2048 threads an SM; 64 (1024) from 1,028 columns on, 96 (640)
          from 4,100: a row is kept in registers, and asked for at once
"""

import math
from functools import cache
from typing import Any, Final

import numpy as np
from numba import cuda, float32, int32, int64

from m40llm.kernels.block_reduce import block_sum
from m40llm.kernels.contract import Kernel, Launcher, ceil_div, check_array
from m40llm.kernels.intrinsics import load_float4, load_float4_readonly, store_float4
from m40llm.kernels.reduce import WARP_SIZE, warp_sum

N_THREADS: Final = 256
HEADS_PER_BLOCK: Final = 4
MAX_QUADS: Final = 8  # of a thread: 8,192 columns of a row
REGISTERS: Final = {n: 32 if n <= 1 else 64 if n <= 4 else 96 for n in range(MAX_QUADS + 1)}


@cache
def _compile(n_quads: int, is_sum: bool) -> Kernel:
    """A thread has n_quads times four columns, loaded once and kept in registers."""

    def rms_norm_kernel(x: Any, residual: Any, weight: Any, eps: Any, y: Any) -> None:
        scratch = cuda.shared.array(32, float32)
        values = cuda.local.array((n_quads, 4), float32)
        weights = cuda.local.array((n_quads, 4), float32)
        thread = int32(cuda.threadIdx.x)
        n_row = int32(int32(x.shape[1]) >> 2)
        first = int64(cuda.blockIdx.x) * int64(n_row)
        for i in range(n_quads):
            quad = int32(thread + int32(i * N_THREADS))
            a, b, c, d = float32(0), float32(0), float32(0), float32(0)
            if quad < n_row:
                a, b, c, d = load_float4(x, int64(4) * (first + quad))
                if is_sum:
                    e, f, g, h = load_float4(residual, int64(4) * (first + quad))
                    a, b, c, d = a + e, b + f, c + g, d + h
                    store_float4(x, int64(4) * (first + quad), a, b, c, d)
            values[i, 0], values[i, 1], values[i, 2], values[i, 3] = a, b, c, d
        for i in range(n_quads):
            quad = int32(thread + int32(i * N_THREADS))
            a, b, c, d = load_float4_readonly(weight, int64(4) * min(quad, int32(n_row - 1)))
            weights[i, 0], weights[i, 1], weights[i, 2], weights[i, 3] = a, b, c, d
        sum_sq = float32(0)
        for i in range(n_quads):
            for j in range(4):
                sum_sq += values[i, j] * values[i, j]
        mean_sq = block_sum(sum_sq, scratch) / float32(x.shape[1])
        scale = float32(1.0) / math.sqrt(mean_sq + eps)
        for i in range(n_quads):
            quad = int32(thread + int32(i * N_THREADS))
            if quad < n_row:
                a, b = values[i, 0] * scale * weights[i, 0], values[i, 1] * scale * weights[i, 1]
                c, d = values[i, 2] * scale * weights[i, 2], values[i, 3] * scale * weights[i, 3]
                store_float4(y, int64(4) * (first + quad), a, b, c, d)

    return Kernel(rms_norm_kernel, registers=REGISTERS[n_quads])


@cache
def _compile_any(is_sum: bool) -> Kernel:
    """Of any width, a column at a time; x is read twice."""

    def rms_norm_any_kernel(x: Any, residual: Any, weight: Any, eps: Any, y: Any) -> None:
        scratch = cuda.shared.array(32, float32)
        token = cuda.blockIdx.x
        n_embd = x.shape[1]
        sum_sq = float32(0.0)
        for c in range(cuda.threadIdx.x, n_embd, N_THREADS):
            value = x[token, c]
            if is_sum:
                value += residual[token, c]
                x[token, c] = value
            sum_sq += value * value
        mean_sq = block_sum(sum_sq, scratch) / float32(n_embd)
        scale = float32(1.0) / math.sqrt(mean_sq + eps)
        for c in range(cuda.threadIdx.x, n_embd, N_THREADS):
            y[token, c] = x[token, c] * scale * weight[c]

    return Kernel(rms_norm_any_kernel, registers=32)


@cache
def _compile_heads() -> Kernel:
    def rms_norm_heads_kernel(x: Any, weight: Any, eps: Any, y: Any) -> None:
        token, lane = cuda.blockIdx.x, cuda.threadIdx.x
        head = cuda.blockIdx.y * int32(HEADS_PER_BLOCK) + cuda.threadIdx.y
        if head >= x.shape[1]:
            return
        head_dim = x.shape[2]
        sum_sq = float32(0.0)
        for d in range(lane, head_dim, WARP_SIZE):
            sum_sq += x[token, head, d] * x[token, head, d]
        mean_sq = warp_sum(sum_sq) / float32(head_dim)
        scale = float32(1.0) / math.sqrt(mean_sq + eps)
        for d in range(lane, head_dim, WARP_SIZE):
            y[token, head, d] = x[token, head, d] * scale * weight[d]

    return Kernel(rms_norm_heads_kernel, registers=32)


def rms_norm(x: Any, weight: Any, eps: float, out: Any, *, stream: Launcher) -> None:
    """out = norm(x)   [n_tokens, n_embd]; out may be x."""
    check_array("x", x, np.float32, (None, None))
    check_array("weight", weight, np.float32, (x.shape[1],))
    check_array("out", out, np.float32, x.shape)
    _launch(x, None, weight, eps, out, stream)


def add_rms_norm(
    x: Any, residual: Any, weight: Any, eps: float, out: Any, *, stream: Launcher
) -> None:
    """x += residual; out = norm(x)   [n_tokens, n_embd]; out may be residual, not x."""
    check_array("x", x, np.float32, (None, None))
    check_array("residual", residual, np.float32, x.shape)
    check_array("weight", weight, np.float32, (x.shape[1],))
    check_array("out", out, np.float32, x.shape)
    _launch(x, residual, weight, eps, out, stream)


def _launch(x: Any, residual: Any, weight: Any, eps: float, out: Any, stream: Launcher) -> None:
    n_tokens, n_embd = x.shape
    if n_tokens == 0:
        return
    n_quads, is_sum = ceil_div(n_embd, 4 * N_THREADS), residual is not None
    fits = n_embd % 4 == 0 and n_quads <= MAX_QUADS
    kernel = _compile(n_quads, is_sum) if fits else _compile_any(is_sum)
    given = residual if is_sum else x
    stream.launch(kernel, n_tokens, N_THREADS, x, given, weight, np.float32(eps), out)


def rms_norm_heads(x: Any, weight: Any, eps: float, out: Any, *, stream: Launcher) -> None:
    """out[t, h] = norm(x[t, h])   [n_tokens, n_heads, head_dim]; out may be x."""
    check_array("x", x, np.float32, (None, None, None))
    check_array("weight", weight, np.float32, (x.shape[2],))
    check_array("out", out, np.float32, x.shape)
    if x.shape[0] == 0 or x.shape[1] == 0:
        return
    grid = (x.shape[0], ceil_div(x.shape[1], HEADS_PER_BLOCK))
    block = (WARP_SIZE, HEADS_PER_BLOCK)
    stream.launch(_compile_heads(), grid, block, x, weight, np.float32(eps), out)
