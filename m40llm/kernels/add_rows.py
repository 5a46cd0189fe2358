"""Rows added where they belong: x[rows[i], c] += shares[i] * y[i, c].

x       float32[n_tokens, n_cols], in place
rows    int32[n], each from 0 to n_tokens - 1, none twice, not checked on the device
shares  float32[n]
y       float32[n, n_cols]; no alias of x
grid    (n, n_cols / 256): a thread an element, so that even one row fills many SMs
bytes   12 * n * n_cols   (bandwidth-bound)
GM200   at most 32 registers: 2048 threads an SM
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
    def add_rows_kernel(x: Any, rows: Any, shares: Any, y: Any) -> None:
        i = cuda.blockIdx.x
        c = cuda.blockIdx.y * cuda.blockDim.x + cuda.threadIdx.x
        if c < x.shape[1]:
            x[rows[i], c] += shares[i] * y[i, c]

    return Kernel(add_rows_kernel, registers=MAX_REGISTERS)


def add_rows(x: Any, rows: Any, shares: Any, y: Any, *, stream: Launcher) -> None:
    """x[rows[i]] += shares[i] * y[i]   float32[n_tokens, n_cols]"""
    check_array("x", x, np.float32, (None, None))
    check_array("rows", rows, np.int32, (None,))
    check_array("shares", shares, np.float32, tuple(rows.shape))
    check_array("y", y, np.float32, (rows.shape[0], x.shape[1]))
    if y.shape[0] and y.shape[1]:
        grid = (y.shape[0], ceil_div(y.shape[1], N_THREADS))
        stream.launch(_compile(), grid, N_THREADS, x, rows, shares, y)
