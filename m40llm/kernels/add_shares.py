"""What a token's experts made, added in their order: x[t, c] += sum_k shares[i] * y[i, c],
slot i = t * n_used + k.

x       float32[n_tokens, n_cols], in place
shares  float32[n_tokens * n_used]
y       float32[n_tokens * n_used, n_cols]; no alias of x
sums    FP32, over k = 0, 1, ...; then x
grid    (n_tokens, n_cols / 256): a thread an element, so that even one row fills many SMs
bytes   4 * n_tokens * n_cols * (n_used + 2)   (bandwidth-bound)
GM200   at most 32 registers: 2048 threads an SM
"""

from functools import cache
from typing import Any, Final

import numpy as np
from numba import cuda, float32, int64

from m40llm.errors import KernelContractError
from m40llm.kernels.contract import Kernel, Launcher, ceil_div, check_array

N_THREADS: Final = 256
MAX_REGISTERS: Final = 32


@cache
def _compile() -> Kernel:
    def add_shares_kernel(x: Any, n_used: Any, shares: Any, y: Any) -> None:
        token = cuda.blockIdx.x
        c = cuda.blockIdx.y * cuda.blockDim.x + cuda.threadIdx.x
        first = int64(token) * n_used
        if c < x.shape[1]:
            total = float32(0.0)
            for slot in range(first, first + n_used):
                total += shares[slot] * y[slot, c]
            x[token, c] += total

    return Kernel(add_shares_kernel, registers=MAX_REGISTERS)


def add_shares(x: Any, shares: Any, y: Any, *, stream: Launcher) -> None:
    """x[t] += the sum of shares[i] * y[i] over the slots of t   float32[n_tokens, n_cols]"""
    check_array("x", x, np.float32, (None, None))
    check_array("shares", shares, np.float32, (None,))
    check_array("y", y, np.float32, (shares.shape[0], x.shape[1]))
    n_tokens, n_cols = x.shape
    if shares.shape[0] % max(n_tokens, 1):
        raise KernelContractError(
            f"shares: expected as many for each of {n_tokens} tokens, got {shares.shape[0]}"
        )
    if n_tokens and n_cols:
        n_used = np.int32(shares.shape[0] // n_tokens)
        grid = (n_tokens, ceil_div(n_cols, N_THREADS))
        stream.launch(_compile(), grid, N_THREADS, x, n_used, shares, y)
