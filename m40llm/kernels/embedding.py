"""Embedding: out[t, c] = dequantised(table)[token_ids[t], c], and the same for FP32 rows.

table      uint8[vocab_size, row_bytes]: the file's own bytes of any type of quant_blocks
token_ids  int32[n_tokens], each from 0 to vocab_size - 1, not checked on the device
out        float32[n_tokens, n_embd]; no alias
grid       (n_tokens, n_embd / 256): a thread a weight, so that even one token fills many SMs
bytes      n_tokens * (row_bytes + 4 * n_embd)
GM200      at most 32 registers: 2048 threads an SM

take_rows: out[i, c] = x[rows[i], c], x float32[n, n_embd], rows int32[n_rows], same grid.
"""

from functools import cache
from typing import Any, Final

import numpy as np
from gguf import GGMLQuantizationType as GGMLType
from numba import cuda, int64

from m40llm.errors import KernelContractError
from m40llm.gguf.blocks import FORMATS, row_bytes
from m40llm.kernels.contract import Kernel, Launcher, ceil_div, check_array
from m40llm.kernels.quant_blocks import WEIGHT_OF

N_THREADS: Final = 256
MAX_REGISTERS: Final = 32


@cache
def _compile(ggml_type: GGMLType) -> Kernel:
    weight = WEIGHT_OF[ggml_type]
    n_weights, n_bytes = FORMATS[ggml_type].n_weights, FORMATS[ggml_type].n_bytes

    def embedding_kernel(table: Any, token_ids: Any, out: Any) -> None:
        token = cuda.blockIdx.x
        c = cuda.blockIdx.y * cuda.blockDim.x + cuda.threadIdx.x
        if c < out.shape[1]:
            row = table[token_ids[token]]
            out[token, c] = weight(row, int64(c // n_weights) * n_bytes, c % n_weights)

    return Kernel(embedding_kernel, registers=MAX_REGISTERS)


@cache
def _compile_take_rows() -> Kernel:
    def take_rows_kernel(x: Any, rows: Any, out: Any) -> None:
        row = cuda.blockIdx.x
        c = cuda.blockIdx.y * cuda.blockDim.x + cuda.threadIdx.x
        if c < out.shape[1]:
            out[row, c] = x[rows[row], c]

    return Kernel(take_rows_kernel, registers=MAX_REGISTERS)


def embedding(
    table: Any, ggml_type: GGMLType, token_ids: Any, out: Any, *, stream: Launcher
) -> None:
    """out[t] = table[token_ids[t]]   float32[n_tokens, n_embd]"""
    if ggml_type not in WEIGHT_OF:
        raise KernelContractError(f"table: no kernel reads type {ggml_type.name}")
    check_array("out", out, np.float32, (None, None))
    check_array("table", table, np.uint8, (None, row_bytes(ggml_type, out.shape[1])))
    check_array("token_ids", token_ids, np.int32, (out.shape[0],))
    _launch(_compile(ggml_type), table, token_ids, out, stream)


def take_rows(x: Any, rows: Any, out: Any, *, stream: Launcher) -> None:
    """out[i] = x[rows[i]]   float32[n_rows, n_embd]"""
    check_array("out", out, np.float32, (None, None))
    check_array("x", x, np.float32, (None, out.shape[1]))
    check_array("rows", rows, np.int32, (out.shape[0],))
    _launch(_compile_take_rows(), x, rows, out, stream)


def _launch(kernel: Kernel, table: Any, rows: Any, out: Any, stream: Launcher) -> None:
    if out.shape[0] and out.shape[1]:
        grid = (out.shape[0], ceil_div(out.shape[1], N_THREADS))
        stream.launch(kernel, grid, N_THREADS, table, rows, out)
