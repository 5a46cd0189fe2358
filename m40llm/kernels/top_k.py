"""Top-k of rows: the k largest logits, largest first, equal ones by id.

logits        float32[n_rows, n], 1 <= n <= 4,194,304; NaN comes after -inf
values, ids   float32, int32[n_rows, k], 1 <= k <= min(n, n_threads); no alias
grid          one block of 512 threads a row
method        order.py: the k-th largest of the threads' own maxima lets about k keys pass, which
              go to shared memory and are ranked by counting; no sort
bytes         8 * n_rows * n: two passes, the second from the L2 for rows that fit
shared        24,596 bytes
GM200         at most 128 registers: one block, 512 threads, an SM
"""

from functools import cache
from typing import Any, Final

import numpy as np
from numba import cuda, int32, int64

from m40llm.errors import KernelContractError
from m40llm.kernels.argmax import check_vocab_size
from m40llm.kernels.contract import Kernel, Launcher, check_array
from m40llm.kernels.order import N_BINS, best_of_thread, gather_top, id_of

N_THREADS: Final = 512
MAX_REGISTERS: Final = 128


@cache
def _compile(n_threads: int) -> Kernel:
    capacity = 2 * n_threads

    def top_k_kernel(logits: Any, values: Any, ids: Any) -> None:
        kept = cuda.shared.array(capacity, int64)
        bins = cuda.shared.array(N_BINS, int64)
        found = cuda.shared.array(2, int64)
        n_kept = cuda.shared.array(1, int32)
        row = cuda.blockIdx.x
        x = logits[row]
        k = values.shape[1]
        best = best_of_thread(x, x.size)
        n_found = gather_top(x, x.size, k, best, kept, n_kept, bins, found)
        for i in range(cuda.threadIdx.x, n_found, n_threads):
            rank = int32(0)
            for other in range(n_found):
                if kept[other] > kept[i]:
                    rank += int32(1)
            if rank < k:
                token_id = id_of(kept[i])
                ids[row, rank] = int32(token_id)
                values[row, rank] = x[token_id]

    return Kernel(top_k_kernel, registers=MAX_REGISTERS)


def top_k(
    logits: Any, values: Any, ids: Any, *, stream: Launcher, n_threads: int = N_THREADS
) -> None:
    """(values[r], ids[r]) = the k largest of logits[r]; k is values.shape[1]."""
    check_array("logits", logits, np.float32, (None, None))
    check_vocab_size(logits.shape[1])
    check_array("values", values, np.float32, (logits.shape[0], None))
    check_array("ids", ids, np.int32, values.shape)
    most = min(logits.shape[1], n_threads)
    if not 1 <= values.shape[1] <= most:
        raise KernelContractError(f"values: expected k of 1 to {most}, got {values.shape[1]}")
    if logits.shape[0]:
        args = (logits, values, ids)
        stream.launch(_compile(n_threads), logits.shape[0], n_threads, *args)
