"""The FP32 peak of a card: multiply-adds in registers alone, looked at before they are timed."""

from functools import cache, partial
from typing import Any, Final

import numpy as np
from numba import cuda, float32

from m40llm.bench.timing import time_launches
from m40llm.errors import DeviceError
from m40llm.kernels.contract import Kernel

N_SUMS: Final = 16  # accumulators of a thread
N_STEPS: Final = 2048
N_THREADS: Final = 256
BLOCKS_PER_SM: Final = (4, 8)


@cache
def fma_kernel() -> Kernel:
    """Sixteen sums a thread, s = s * factor + term, in registers alone."""

    def multiply_add(factor: Any, term: Any, n_steps: Any, out: Any) -> None:
        sums = cuda.local.array(N_SUMS, float32)
        for i in range(N_SUMS):
            sums[i] = float32(cuda.threadIdx.x + i)
        for _ in range(n_steps):
            for i in range(N_SUMS):
                sums[i] = sums[i] * factor + term
        total = float32(0)
        for i in range(N_SUMS):
            total += sums[i]
        out[cuda.grid(1)] = total

    return Kernel(multiply_add)


def flops_per_s(card: Any, n_samples: int, n_steps: int = N_STEPS) -> tuple[float, str]:
    """(FLOPs a second, what reached them). s = s / 2 + 1 comes to 2 exactly, from any start.

    DeviceError where it has not.
    """
    found = []
    for n_blocks in (n * card.n_sms for n in BLOCKS_PER_SM):
        out = card.alloc((n_blocks * N_THREADS,), np.float32)
        numbers = np.float32(0.5), np.float32(1), np.int32(n_steps)
        args = (fma_kernel(), n_blocks, N_THREADS, *numbers, out)
        card.launch(*args)
        if not (card.read(out) == 2 * N_SUMS).all():
            raise DeviceError(f"multiply-adds: a sum of {n_blocks} blocks has not come to 2")
        times = time_launches(card, [partial(card.launch, *args)] * 4, n_samples)
        n_flops = 2 * N_SUMS * n_steps * n_blocks * N_THREADS
        found.append((1e6 * n_flops / times.median, f"FFMA in registers, {n_blocks} blocks"))
    return max(found)
