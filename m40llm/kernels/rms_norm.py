"""RMSNorm: y[t, c] = weight[c] * x[t, c] / sqrt(mean_c(x[t]^2) + eps), in three forms.

rms_norm         x, y float32[n_tokens, n_embd], weight float32[n_embd]; y may be x
add_rms_norm     x += residual first, in place, both float32[n_tokens, n_embd]; y may be residual
rms_norm_heads   x, y float32[n_tokens, n_heads, head_dim], weight float32[head_dim], a norm a
                 head (Q/K norms); y may be x

sums      FP32: each thread adds its columns in order, then pairwise over the warp, then by warp
grid      one block a token; heads: one warp a head. No size need be a multiple of anything.
bytes     8 * n_tokens * n_embd + 4 * n_embd, the fused form twice that   (bandwidth-bound)
shared    128 bytes; heads: none
GM200     at most 32 registers: 2048 threads an SM
"""

import math
from functools import cache
from typing import Any, Final

import numpy as np
from numba import cuda, float32, int32

from m40llm.kernels.block_reduce import block_sum
from m40llm.kernels.contract import Kernel, Launcher, ceil_div, check_array
from m40llm.kernels.reduce import WARP_SIZE, warp_sum

N_THREADS: Final = 256
HEADS_PER_BLOCK: Final = 4
MAX_REGISTERS: Final = 32


@cache
def _compile(n_threads: int) -> Kernel:
    def rms_norm_kernel(x: Any, weight: Any, eps: Any, y: Any) -> None:
        scratch = cuda.shared.array(32, float32)
        token = cuda.blockIdx.x
        n_embd = x.shape[1]
        sum_sq = float32(0.0)
        for c in range(cuda.threadIdx.x, n_embd, n_threads):
            sum_sq += x[token, c] * x[token, c]
        mean_sq = block_sum(sum_sq, scratch) / float32(n_embd)
        scale = float32(1.0) / math.sqrt(mean_sq + eps)
        for c in range(cuda.threadIdx.x, n_embd, n_threads):
            y[token, c] = x[token, c] * scale * weight[c]

    return Kernel(rms_norm_kernel, registers=MAX_REGISTERS)


@cache
def _compile_add(n_threads: int) -> Kernel:
    def add_rms_norm_kernel(x: Any, residual: Any, weight: Any, eps: Any, y: Any) -> None:
        scratch = cuda.shared.array(32, float32)
        token = cuda.blockIdx.x
        n_embd = x.shape[1]
        sum_sq = float32(0.0)
        for c in range(cuda.threadIdx.x, n_embd, n_threads):
            value = x[token, c] + residual[token, c]
            x[token, c] = value
            sum_sq += value * value
        mean_sq = block_sum(sum_sq, scratch) / float32(n_embd)
        scale = float32(1.0) / math.sqrt(mean_sq + eps)
        for c in range(cuda.threadIdx.x, n_embd, n_threads):
            y[token, c] = x[token, c] * scale * weight[c]

    return Kernel(add_rms_norm_kernel, registers=MAX_REGISTERS)


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

    return Kernel(rms_norm_heads_kernel, registers=MAX_REGISTERS)


def rms_norm(x: Any, weight: Any, eps: float, out: Any, *, stream: Launcher) -> None:
    """out = norm(x)   [n_tokens, n_embd]; out may be x."""
    check_array("x", x, np.float32, (None, None))
    check_array("weight", weight, np.float32, (x.shape[1],))
    check_array("out", out, np.float32, x.shape)
    if x.shape[0] == 0:
        return
    stream.launch(_compile(N_THREADS), x.shape[0], N_THREADS, x, weight, np.float32(eps), out)


def add_rms_norm(
    x: Any, residual: Any, weight: Any, eps: float, out: Any, *, stream: Launcher
) -> None:
    """x += residual; out = norm(x)   [n_tokens, n_embd]; out may be residual, not x."""
    check_array("x", x, np.float32, (None, None))
    check_array("residual", residual, np.float32, x.shape)
    check_array("weight", weight, np.float32, (x.shape[1],))
    check_array("out", out, np.float32, x.shape)
    if x.shape[0] == 0:
        return
    args = (x, residual, weight, np.float32(eps), out)
    stream.launch(_compile_add(N_THREADS), x.shape[0], N_THREADS, *args)


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
