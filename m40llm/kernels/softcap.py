"""Soft cap of logits (arXiv 2408.00118): x = cap * tanh(x / cap), which stays within +-cap.

Attention caps its own scores: attention_common.py.

x       float32[n_tokens, n_cols]   in place; 16-byte aligned
grid    a thread for 4 elements; the last n % 4 one by one
bytes   8 * n_tokens * n_cols   (bandwidth-bound)
GM200   at most 32 registers: 2048 threads an SM
"""

import math
from functools import cache
from typing import Any, Final

import numpy as np
from numba import cuda, int64

from m40llm.errors import KernelContractError
from m40llm.kernels.contract import Kernel, Launcher, ceil_div, check_array
from m40llm.kernels.intrinsics import load_float4, store_float4

N_THREADS: Final = 256
PER_THREAD: Final = 4
MAX_REGISTERS: Final = 32


@cache
def _compile() -> Kernel:
    def softcap_kernel(x: Any, inner: Any, cap: Any) -> None:
        first = int64(cuda.grid(1)) * PER_THREAD
        n_cols = x.shape[1]
        if first + PER_THREAD <= x.size:
            a, b, c, d = load_float4(x, first)
            a, b = cap * math.tanh(inner * a), cap * math.tanh(inner * b)
            c, d = cap * math.tanh(inner * c), cap * math.tanh(inner * d)
            store_float4(x, first, a, b, c, d)
        else:
            for element in range(first, x.size):
                token, col = element // n_cols, element % n_cols
                x[token, col] = cap * math.tanh(inner * x[token, col])

    return Kernel(softcap_kernel, registers=MAX_REGISTERS)


def softcap(x: Any, cap: float, *, stream: Launcher) -> None:
    """x = cap * tanh(x / cap)   [n_tokens, n_cols]"""
    check_array("x", x, np.float32, (None, None))
    if not cap > 0:
        raise KernelContractError(f"cap: expected a number above 0, got {cap}")
    n_tokens, n_cols = x.shape
    if n_tokens and n_cols:
        grid = ceil_div(n_tokens * n_cols, N_THREADS * PER_THREAD)
        stream.launch(_compile(), grid, N_THREADS, x, np.float32(1 / cap), np.float32(cap))
