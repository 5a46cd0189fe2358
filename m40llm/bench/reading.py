"""The read bandwidth of a card: what decode is measured against, in the same run."""

from functools import cache
from typing import Any, Final

import numpy as np
from numba import cuda, int64, uint32

from m40llm.errors import DeviceError
from m40llm.kernels.contract import Kernel
from m40llm.kernels.intrinsics import load_uint4_readonly
from m40llm.kernels.reduce import warp_sum

N_THREADS: Final = 256
WORDS_PER_LOAD: Final = 4
LOADS: Final = 4  # 16-byte loads that a thread has under way
CHUNK_BYTES: Final = 2**26
BLOCKS_PER_SM: Final = (4, 8, 32)
N_BYTES: Final = 2**30
N_SAMPLES: Final = 10


@cache
def read_kernel() -> Kernel:
    """sums[i] += all words of x that warp i reads, modulo 2^32; x in multiples of a thread's 16."""

    def read_words(x: Any, sums: Any) -> None:
        words = cuda.local.array((LOADS, WORDS_PER_LOAD), uint32)
        total = uint32(0)
        step = int64(cuda.gridDim.x) * N_THREADS * WORDS_PER_LOAD
        for at in range(int64(cuda.grid(1)) * WORDS_PER_LOAD, x.size, step * LOADS):
            for load in range(LOADS):
                mine = min(at + load * step, x.size - WORDS_PER_LOAD)
                a, b, c, d = load_uint4_readonly(x, mine)
                words[load, 0], words[load, 1], words[load, 2], words[load, 3] = a, b, c, d
            for load in range(LOADS):
                if at + load * step < x.size:
                    for word in range(WORDS_PER_LOAD):
                        total = uint32(total + words[load, word])
        total = warp_sum(int64(total))
        if cuda.threadIdx.x % 32 == 0:
            sums[cuda.grid(1) // 32] = uint32(total)

    return Kernel(read_words)


def filled(card: Any, n_bytes: int) -> tuple[Any, int]:
    """(words on the card, their sum modulo 2^32): one drawn chunk over and over."""
    n_words, chunk_words = n_bytes // 4, min(CHUNK_BYTES, n_bytes) // 4
    if n_words % chunk_words:
        raise ValueError(f"n_bytes: expected a multiple of {4 * chunk_words}, got {n_bytes}")
    chunk = np.random.default_rng(0).integers(0, 2**32, chunk_words, np.uint32)
    x = card.alloc((n_words,), np.uint32)
    for first in range(0, n_words, chunk_words):
        card.write(x[first : first + chunk_words], chunk)
    n_chunks = n_words // chunk_words
    return x, int(chunk.sum(dtype=np.uint64)) * n_chunks % 2**32


def check_read(card: Any, x: Any, total: int, n_blocks: int) -> tuple[Any, ...]:
    """The arguments of a launch that has read all of x, as its sum shows."""
    sums = card.alloc((n_blocks * N_THREADS // 32,), np.uint32)
    args = (read_kernel(), n_blocks, N_THREADS, x, sums)
    card.launch(*args)
    got = int(card.read(sums).sum(dtype=np.uint64)) % 2**32
    if got != total:
        raise DeviceError(f"reading: {n_blocks} blocks add up to {got}, not {total}")
    return args


def read_bytes_per_s(card: Any, n_bytes: int = N_BYTES) -> float:
    """The best of some launch shapes, by the median of N_SAMPLES."""
    x, total = filled(card, n_bytes)
    best = 0.0
    for n_blocks in (n * card.n_sms for n in BLOCKS_PER_SM):
        args = check_read(card, x, total, n_blocks)
        samples = []
        for _ in range(N_SAMPLES):
            start = card.event()
            card.launch(*args)
            samples.append(card.elapsed_ms(start, card.event()))
        best = max(best, n_bytes / (float(np.median(samples)) / 1e3))
    return best
