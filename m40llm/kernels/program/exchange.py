"""Vectors that blocks of a resident grid hand each other, each number with word of its arrival.

    words   uint32[n_seqs, n, 2]: the bits of a float32, and the epoch in which it was written

    x0, x1, x2, x3 = take4(words, i, epoch)    numbers i to i + 3, once they have that epoch
    x0, x1, y0, y1 = take2_twice(words, i, j, epoch)    numbers i, i + 1, j, j + 1, in one trip
    give2(words, i, a, b, epoch)               numbers i and i + 1, for whoever waits; i is even
    give1(words, i, a, epoch)

An aligned 8 bytes are read and written whole, so that a number that has arrived is known by its
epoch, with no fence, no counter and no second read: 1.2 us from block to block on an H100 where a
barrier and a read take 1.8. (NCCL's LL protocol does the same between cards.) i counts from the
buffer's first number. `writing_of` numbers the writings: no two that meet in one word are equal.

A number may be written again once all have read it. The program's order sees to that: who writes
x has taken all of what was made from the old x.
"""

from typing import Any

from numba import cuda, uint32

from m40llm.kernels.bits import float_as_uint, uint_as_float
from m40llm.kernels.intrinsics import (
    load_uint4_volatile,
    store_uint2_volatile,
    store_uint4_volatile,
)


@cuda.jit(device=True, forceinline=True)
def writing_of(step: Any, n_instructions: Any, writer: Any) -> Any:
    """Of what instruction `writer` (0, 1, ...) writes in step 1, 2, ... of the buffers' life."""
    return uint32(uint32(step) * uint32(n_instructions) + uint32(writer) + uint32(1))


@cuda.jit(device=True, forceinline=True)
def look4(words: Any, i: Any, seen: Any, k: Any) -> None:
    """The words of numbers i to i + 3 as they are now, into seen[k], uint32[8]; i is even."""
    seen[k, 0], seen[k, 1], seen[k, 2], seen[k, 3] = load_uint4_volatile(words, 2 * i)
    seen[k, 4], seen[k, 5], seen[k, 6], seen[k, 7] = load_uint4_volatile(words, 2 * i + 4)


@cuda.jit(device=True, forceinline=True)
def has_arrived(seen: Any, k: Any, epoch: Any) -> Any:
    """Whether all four of seen[k] have that epoch."""
    return (seen[k, 1] == epoch and seen[k, 3] == epoch) and (
        seen[k, 5] == epoch and seen[k, 7] == epoch
    )


@cuda.jit(device=True, forceinline=True)
def take4(words: Any, i: Any, epoch: Any) -> Any:
    """Numbers i to i + 3, once all four have arrived."""
    seen = cuda.local.array((1, 8), uint32)
    look4(words, i, seen, 0)
    while not has_arrived(seen, 0, epoch):
        look4(words, i, seen, 0)
    return (
        uint_as_float(seen[0, 0]),
        uint_as_float(seen[0, 2]),
        uint_as_float(seen[0, 4]),
        uint_as_float(seen[0, 6]),
    )


@cuda.jit(device=True, forceinline=True)
def take2(words: Any, i: Any, epoch: Any) -> Any:
    """Numbers i and i + 1, once both have arrived."""
    a, epoch_a, b, epoch_b = load_uint4_volatile(words, 2 * i)
    while epoch_a != epoch or epoch_b != epoch:
        a, epoch_a, b, epoch_b = load_uint4_volatile(words, 2 * i)
    return uint_as_float(a), uint_as_float(b)


@cuda.jit(device=True, forceinline=True)
def take2_twice(words: Any, i: Any, j: Any, epoch: Any) -> Any:
    """Numbers i, i + 1, j and j + 1, once all have arrived."""
    a, epoch_a, b, epoch_b = load_uint4_volatile(words, 2 * i)
    c, epoch_c, d, epoch_d = load_uint4_volatile(words, 2 * j)
    while epoch_a != epoch or epoch_b != epoch or epoch_c != epoch or epoch_d != epoch:
        a, epoch_a, b, epoch_b = load_uint4_volatile(words, 2 * i)
        c, epoch_c, d, epoch_d = load_uint4_volatile(words, 2 * j)
    return uint_as_float(a), uint_as_float(b), uint_as_float(c), uint_as_float(d)


@cuda.jit(device=True, forceinline=True)
def give2(words: Any, i: Any, a: Any, b: Any, epoch: Any) -> None:
    """Numbers i and i + 1."""
    store_uint4_volatile(words, 2 * i, float_as_uint(a), epoch, float_as_uint(b), epoch)


@cuda.jit(device=True, forceinline=True)
def give1(words: Any, i: Any, a: Any, epoch: Any) -> None:
    """Number i."""
    store_uint2_volatile(words, 2 * i, float_as_uint(a), epoch)
