"""Argmax of rows: out[r] = the smallest id of the largest logits[r, id].

logits   float32[n_rows, n], 1 <= n <= 4,194,304; NaN counts as less than -inf, so that it is
         chosen only where all entries are NaN (and then it is id 0); 0 and -0 are equal
out      int32[n_rows]; no alias
grid     one block of 1024 threads a row: of 128k logits, 512 KB through one SM, against the
         hundreds of megabytes of the output matrix that made them
bytes    4 * n_rows * n   (bandwidth-bound)
shared   256 bytes
GM200    at most 32 registers: 2048 threads an SM
"""

from functools import cache
from typing import Any, Final

import numpy as np
from numba import cuda, int32, int64

from m40llm.errors import KernelContractError
from m40llm.kernels.block_reduce import block_max
from m40llm.kernels.contract import Kernel, Launcher, check_array
from m40llm.kernels.order import MAX_VOCAB_SIZE, best_of_thread, id_of

N_THREADS: Final = 1024
MAX_REGISTERS: Final = 32


@cache
def _compile() -> Kernel:
    def argmax_kernel(logits: Any, out: Any) -> None:
        scratch = cuda.shared.array(32, int64)
        row = cuda.blockIdx.x
        best = block_max(best_of_thread(logits[row], logits.shape[1]), scratch)
        if cuda.threadIdx.x == 0:
            out[row] = int32(id_of(best))

    return Kernel(argmax_kernel, registers=MAX_REGISTERS)


def argmax(logits: Any, out: Any, *, stream: Launcher, n_threads: int = N_THREADS) -> None:
    """out[r] = argmax(logits[r])   int32[n_rows]"""
    check_array("logits", logits, np.float32, (None, None))
    check_vocab_size(logits.shape[1])
    check_array("out", out, np.int32, (logits.shape[0],))
    if logits.shape[0]:
        stream.launch(_compile(), logits.shape[0], n_threads, logits, out)


def check_vocab_size(n: int) -> None:
    """KernelContractError unless a key has room for the ids."""
    if not 1 <= n <= MAX_VOCAB_SIZE:
        raise KernelContractError(f"logits: expected rows of 1 to {MAX_VOCAB_SIZE}, got {n}")
