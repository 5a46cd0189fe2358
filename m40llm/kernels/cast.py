"""Cast: out[i] = x[i], FP32 to FP16 or back.

x, out    float32[n] and float16[n], or the other way; no alias; both 16-byte aligned
rounding  to nearest, ties to even; beyond 65504 + 16 infinity; subnormals kept; NaN stays NaN
grid      a thread for 4 elements, one 16-byte and one 8-byte access; the last n % 4 one by one
bytes     6 * n   (bandwidth-bound)
GM200     at most 32 registers: 2048 threads an SM
"""

from functools import cache
from typing import Any, Final

import numpy as np
from numba import cuda, float32, int64
from numba.cuda.types import float16

from m40llm.errors import KernelContractError
from m40llm.kernels.bits import float2_to_half2, half2_to_float2
from m40llm.kernels.contract import Kernel, Launcher, ceil_div, check_array
from m40llm.kernels.intrinsics import load_float4, load_uint2, store_float4, store_uint2

N_THREADS: Final = 256
PER_THREAD: Final = 4
MAX_REGISTERS: Final = 32


@cache
def _compile_to_half() -> Kernel:
    def cast_to_half(x: Any, out: Any) -> None:
        first = int64(cuda.grid(1)) * PER_THREAD
        if first + PER_THREAD <= x.size:
            a, b, c, d = load_float4(x, first)
            store_uint2(out, first, float2_to_half2(a, b), float2_to_half2(c, d))
        else:
            for element in range(first, x.size):
                out[element] = float16(x[element])

    return Kernel(cast_to_half, registers=MAX_REGISTERS)


@cache
def _compile_to_float() -> Kernel:
    def cast_to_float(x: Any, out: Any) -> None:
        first = int64(cuda.grid(1)) * PER_THREAD
        if first + PER_THREAD <= x.size:
            low, high = load_uint2(x, first)
            a, b = half2_to_float2(low)
            c, d = half2_to_float2(high)
            store_float4(out, first, a, b, c, d)
        else:
            for element in range(first, x.size):
                out[element] = float32(x[element])

    return Kernel(cast_to_float, registers=MAX_REGISTERS)


def cast(x: Any, out: Any, *, stream: Launcher) -> None:
    """out = x in out's type; the types say which way."""
    to_half = x.dtype == np.dtype(np.float32)
    if len(x.shape) != 1:
        raise KernelContractError(f"x: expected one dimension, got {list(x.shape)}")
    check_array("x", x, np.float32 if to_half else np.float16, (None,))
    check_array("out", out, np.float16 if to_half else np.float32, (x.shape[0],))
    if x.shape[0] == 0:
        return
    kernel = _compile_to_half() if to_half else _compile_to_float()
    stream.launch(kernel, ceil_div(x.shape[0], N_THREADS * PER_THREAD), N_THREADS, x, out)
