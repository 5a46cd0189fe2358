"""Bias: out[t, r] += bias[r], after a product that knows no bias.

bias   float32[n_rows]
out    float32[n_tokens, n_rows]   in place; no alias
grid   (n_tokens, n_rows / 256): a thread an element
bytes  8 * n_tokens * n_rows + 4 * n_rows   (bandwidth-bound)
GM200  at most 32 registers: 2048 threads an SM
"""

from functools import cache
from typing import Any, Final

import numpy as np
from numba import cuda

from m40llm.kernels.contract import Kernel, Launcher, ceil_div, check_array

N_THREADS: Final = 256
MAX_REGISTERS: Final = 32


@cache
def _compile() -> Kernel:
    def add_bias(bias: Any, out: Any) -> None:
        token = cuda.blockIdx.x
        row = cuda.blockIdx.y * cuda.blockDim.x + cuda.threadIdx.x
        if row < out.shape[1]:
            out[token, row] += bias[row]

    return Kernel(add_bias, registers=MAX_REGISTERS)


def add_bias(bias: Any, out: Any, *, stream: Launcher) -> None:
    """out[t] += bias   float32[n_tokens, n_rows]"""
    check_array("out", out, np.float32, (None, None))
    check_array("bias", bias, np.float32, (out.shape[1],))
    if out.shape[0] and out.shape[1]:
        grid = (out.shape[0], ceil_div(out.shape[1], N_THREADS))
        stream.launch(_compile(), grid, N_THREADS, bias, out)
