"""Softmax of rows: y[r, c] = exp(x[r, c] - max(x[r])) / sum_c(exp(x[r, c] - max(x[r]))).

x, y      float32[n_rows, n]; y may be x; at least one entry of each row is finite, none +inf
          or NaN (either makes its row NaN); -inf gives 0
sums      FP32, in the order of rms_norm
grid      one block a row; three passes over it, the latter two from the L2 for rows that fit
bytes     8 * n_rows * n   (bandwidth-bound)
shared    128 bytes
GM200     at most 32 registers: 2048 threads an SM
"""

import math
from functools import cache
from typing import Any, Final

import numpy as np
from numba import cuda, float32

from m40llm.kernels.block_reduce import block_max, block_sum
from m40llm.kernels.contract import Kernel, Launcher, check_array

N_THREADS: Final = 256
MAX_REGISTERS: Final = 32
_MINUS_INFINITY: Final = float("-inf")


@cache
def _compile(n_threads: int) -> Kernel:
    def softmax_kernel(x: Any, y: Any) -> None:
        scratch = cuda.shared.array(32, float32)
        row = cuda.blockIdx.x
        n = x.shape[1]
        largest = float32(_MINUS_INFINITY)
        for c in range(cuda.threadIdx.x, n, n_threads):
            largest = max(largest, x[row, c])
        largest = block_max(largest, scratch)
        total = float32(0.0)
        for c in range(cuda.threadIdx.x, n, n_threads):
            total += math.exp(x[row, c] - largest)
        total = block_sum(total, scratch)
        for c in range(cuda.threadIdx.x, n, n_threads):
            y[row, c] = math.exp(x[row, c] - largest) / total

    return Kernel(softmax_kernel, registers=MAX_REGISTERS)


def softmax(x: Any, out: Any, *, stream: Launcher) -> None:
    """out[r] = softmax(x[r])   [n_rows, n]; out may be x."""
    check_array("x", x, np.float32, (None, None))
    check_array("out", out, np.float32, x.shape)
    if x.shape[0] and x.shape[1]:
        stream.launch(_compile(N_THREADS), x.shape[0], N_THREADS, x, out)
