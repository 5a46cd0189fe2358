"""Dequantise: out[r, c] = W[first_row + r, c] in FP32, for a product that reads nothing but FP32.

W      Planes[n_rows, n_cols]     F32, F16 or quantised
out    float32[n, n_cols]         first_row + n <= n_rows; 16-byte aligned; no alias
exact  bit for bit as gguf.quants has the weights; see dequantize.py
grid   (n, n_cols / 1024): 128 threads, of 8 weights of a row each, two 16-byte stores
bytes  n * (bytes of a row of W + 4 * n_cols)   (bandwidth-bound)
GM200  at most 32 registers: 2048 threads an SM
"""

from functools import cache
from typing import Any, Final

import numpy as np
from gguf import GGMLQuantizationType as GGMLType
from numba import cuda, float32, int64, uint32

from m40llm.errors import KernelContractError
from m40llm.kernels.contract import Kernel, Launcher, ceil_div, check_array
from m40llm.kernels.dequantize import convert, decode_scales, fetch, fetch_scales, row_start
from m40llm.kernels.intrinsics import store_float4
from m40llm.kernels.planes import Planes, check_planes

N_THREADS: Final = 128
PER_THREAD: Final = 8
MAX_REGISTERS: Final = 32


@cache
def _compile(type: GGMLType) -> Kernel:
    fetch_eight, convert_eight = fetch(type), convert(type)
    fetch_words, decode_words, find_start = fetch_scales(type), decode_scales(type), row_start(type)

    def dequantize_rows(quants: Any, highs: Any, scales: Any, first_row: Any, out: Any) -> None:
        raw, words = cuda.local.array(PER_THREAD, uint32), cuda.local.array(4, uint32)
        w = cuda.local.array(PER_THREAD, float32)
        row, n_cols = int64(cuda.blockIdx.x), out.shape[1]
        col = (cuda.blockIdx.y * cuda.blockDim.x + cuda.threadIdx.x) * PER_THREAD
        if col < n_cols:
            of_w = first_row + row
            row_at = find_start(quants, of_w)
            fetch_eight(quants, highs, of_w, row_at, col, n_cols, raw)
            fetch_words(scales, of_w, col, words)
            scale, minimum = decode_words(words, col)
            convert_eight(raw, scale, minimum, col, w)
            at = row * n_cols + col
            store_float4(out, at, w[0], w[1], w[2], w[3])
            if col + 4 < n_cols:
                store_float4(out, at + 4, w[4], w[5], w[6], w[7])

    return Kernel(dequantize_rows, registers=MAX_REGISTERS)


def dequantize_rows(w: Planes, first_row: int, out: Any, *, stream: Launcher) -> None:
    """out = the rows of W from first_row on, as many as out has   float32[n, n_cols]"""
    check_planes(w)
    check_array("out", out, np.float32, (None, w.n_cols))
    n_rows = int(out.shape[0])
    if not 0 <= first_row <= w.n_rows - n_rows:
        raise KernelContractError(
            f"first_row: expected {n_rows} of {w.n_rows} rows, got those from {first_row} on"
        )
    if n_rows and w.n_cols:
        grid = (n_rows, ceil_div(w.n_cols, N_THREADS * PER_THREAD))
        highs, scales = (w.quants if plane is None else plane for plane in (w.highs, w.scales))
        first = np.int64(first_row)
        stream.launch(_compile(w.type), grid, N_THREADS, w.quants, highs, scales, first, out)
