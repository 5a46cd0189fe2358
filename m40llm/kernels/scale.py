"""Multipliers of the residual stream, of embeddings and of logits.

scale        x *= factor
add_scaled   x += factor * y

x, y    float32[n_tokens, n_cols]   x in place; y no alias of it; 16-byte aligned
grid    a thread for 4 elements; the last n % 4 one by one
bytes   8 * n_tokens * n_cols, with y 12   (bandwidth-bound)
GM200   at most 32 registers: 2048 threads an SM
"""

from functools import cache
from typing import Any, Final

import numpy as np
from numba import cuda, int64

from m40llm.kernels.contract import Kernel, Launcher, ceil_div, check_array
from m40llm.kernels.intrinsics import load_float4, store_float4

N_THREADS: Final = 256
PER_THREAD: Final = 4
MAX_REGISTERS: Final = 32


@cache
def _compile() -> Kernel:
    def scale_kernel(x: Any, factor: Any) -> None:
        first = int64(cuda.grid(1)) * PER_THREAD
        n_cols = x.shape[1]
        if first + PER_THREAD <= x.size:
            a, b, c, d = load_float4(x, first)
            store_float4(x, first, a * factor, b * factor, c * factor, d * factor)
        else:
            for element in range(first, x.size):
                x[element // n_cols, element % n_cols] *= factor

    return Kernel(scale_kernel, registers=MAX_REGISTERS)


@cache
def _compile_add() -> Kernel:
    def add_scaled_kernel(x: Any, y: Any, factor: Any) -> None:
        first = int64(cuda.grid(1)) * PER_THREAD
        n_cols = x.shape[1]
        if first + PER_THREAD <= x.size:
            a, b, c, d = load_float4(x, first)
            e, f, g, h = load_float4(y, first)
            a, b, c, d = a + factor * e, b + factor * f, c + factor * g, d + factor * h
            store_float4(x, first, a, b, c, d)
        else:
            for element in range(first, x.size):
                token, col = element // n_cols, element % n_cols
                x[token, col] += factor * y[token, col]

    return Kernel(add_scaled_kernel, registers=MAX_REGISTERS)


def scale(x: Any, factor: float, *, stream: Launcher) -> None:
    """x *= factor   [n_tokens, n_cols]"""
    check_array("x", x, np.float32, (None, None))
    _launch(_compile(), (x,), factor, stream)


def add_scaled(x: Any, y: Any, factor: float, *, stream: Launcher) -> None:
    """x += factor * y   [n_tokens, n_cols]"""
    check_array("x", x, np.float32, (None, None))
    check_array("y", y, np.float32, x.shape)
    _launch(_compile_add(), (x, y), factor, stream)


def _launch(kernel: Kernel, arrays: tuple[Any, ...], factor: float, stream: Launcher) -> None:
    n_tokens, n_cols = arrays[0].shape
    if n_tokens and n_cols:
        grid = ceil_div(n_tokens * n_cols, N_THREADS * PER_THREAD)
        stream.launch(kernel, grid, N_THREADS, *arrays, np.float32(factor))
