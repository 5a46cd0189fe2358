"""What the card can do at most, measured in the same run: reading, copying, FP32 multiply-adds.

Every kernel's result is looked at before its time is. The best of some launch shapes, and of
torch where it is there, is the ceiling.
"""

from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from numba import cuda, int64
from rivals import Rival, randn, time_rival

from m40llm.bench.multiply_add import N_STEPS, flops_per_s
from m40llm.bench.reading import BLOCKS_PER_SM, N_THREADS, WORDS_PER_LOAD, check_read, filled
from m40llm.bench.timing import time_launches
from m40llm.kernels.contract import Kernel
from m40llm.kernels.intrinsics import load_uint4_readonly, store_uint4


@dataclass(frozen=True)
class Ceiling:
    """The most of one thing: `rate` bytes or FLOPs a second, and what reached it."""

    kind: str
    rate: float
    source: str


@dataclass(frozen=True)
class Ceilings:
    read: Ceiling
    copy: Ceiling
    fma: Ceiling

    def of(self, bytes_read: int, bytes_written: int, n_flops: int) -> tuple[Ceiling, float]:
        """(what bounds this work, microseconds that it takes at least)."""
        memory = self.copy if 8 * bytes_written > bytes_read else self.read
        floors = {
            memory: (bytes_read + bytes_written) / memory.rate,
            self.fma: n_flops / self.fma.rate,
        }
        bound = max(floors, key=lambda ceiling: floors[ceiling])
        return bound, 1e6 * floors[bound]


@cache
def copy_kernel() -> Kernel:
    def copy_words(x: Any, y: Any) -> None:
        step = int64(cuda.gridDim.x) * N_THREADS * WORDS_PER_LOAD
        for at in range(int64(cuda.grid(1)) * WORDS_PER_LOAD, x.size, step):
            a, b, c, d = load_uint4_readonly(x, at)
            store_uint4(y, at, a, b, c, d)

    return Kernel(copy_words)


def measure_ceilings(card: Any, n_bytes: int, n_samples: int) -> Ceilings:
    """All three; `n_bytes` are read, half of them copied."""
    read_ceiling = measure_read(card, n_bytes, n_samples)
    return Ceilings(
        read_ceiling,
        measure_copy(card, n_bytes // 2, n_samples),
        measure_fma(card, n_samples),
    )


def measure_read(card: Any, n_bytes: int, n_samples: int) -> Ceiling:
    x, total = filled(card, n_bytes)
    found = []
    for n_blocks in _block_counts(card):
        args = check_read(card, x, total, n_blocks)
        times = time_launches(card, [partial(card.launch, *args)] * 2, n_samples)
        found.append((n_blocks, times.median))
    rate, source = _best(found, n_bytes)
    n_floats = n_bytes // 4
    del x
    return _or_torch(
        Ceiling("read", rate, source),
        Rival("torch.sum float32", lambda torch: randn(torch, n_floats).sum),
        n_bytes, n_samples,
    )  # fmt: skip


def measure_copy(card: Any, n_bytes: int, n_samples: int) -> Ceiling:
    x, _ = filled(card, n_bytes)
    y = card.alloc(x.shape, np.uint32)
    found = []
    for n_blocks in _block_counts(card):
        args = (copy_kernel(), n_blocks, N_THREADS, x, y)
        card.launch(*args)
        if not np.array_equal(card.read(y[-1024:]), card.read(x[-1024:])):
            raise ArithmeticError(f"copy: {n_blocks} blocks leave an end that differs")
        times = time_launches(card, [partial(card.launch, *args)] * 2, n_samples)
        found.append((n_blocks, times.median))
    rate, source = _best(found, 2 * n_bytes)
    del x, y

    def make(torch: Any) -> Any:
        source, target = randn(torch, n_bytes // 4), randn(torch, n_bytes // 4)
        return lambda: target.copy_(source)

    rival = Rival("torch copy_ float32", make)
    return _or_torch(Ceiling("copy", rate, source), rival, 2 * n_bytes, n_samples)


def measure_fma(card: Any, n_samples: int, n_steps: int = N_STEPS) -> Ceiling:
    return Ceiling("fma", *flops_per_s(card, n_samples, n_steps))


def _block_counts(card: Any) -> list[int]:
    return [n * card.n_sms for n in BLOCKS_PER_SM]


def _best(found: list[tuple[int, float]], n_bytes: int) -> tuple[float, str]:
    n_blocks, us = min(found, key=lambda pair: pair[1])
    return 1e6 * n_bytes / us, f"16-byte loads, {n_blocks} blocks of {N_THREADS}"


def _or_torch(ours: Ceiling, rival: Rival, n_bytes: int, n_samples: int) -> Ceiling:
    times = time_rival(rival, 1, n_samples)
    if times is None or 1e6 * n_bytes / times.median <= ours.rate:
        return ours
    return Ceiling(ours.kind, 1e6 * n_bytes / times.median, rival.name)
