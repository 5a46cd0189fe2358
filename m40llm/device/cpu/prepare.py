"""Every compiled function of the CPU, called once on a few numbers.

Numba compiles at the first call: some 20 s in all, once a machine, and 0.2 s from its cache after
that. Done here, before the weights load, it can be shown as progress instead of a silent wait.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
from gguf import GGMLQuantizationType as GGMLType

from m40llm.device.cpu import elementwise, q8_cache
from m40llm.device.cpu.attention import attention
from m40llm.device.cpu.formats import UNIT
from m40llm.device.cpu.matmul import DenseMatrix, PackedMatrix, gather_rows, matmul
from m40llm.device.cpu.vectors import MAX_VECTORS
from m40llm.device.ops import Q8Cache
from m40llm.progress import Progress


def prepare(progress: Progress | None = None, *, has_q8_cache: bool = False) -> None:
    """Compiles whatever is not in Numba's cache yet."""
    calls = _calls() + (_calls_of_q8_cache() if has_q8_cache else [])
    for done, call in enumerate(calls):
        if progress:
            progress("compiling for this CPU (once)", done / len(calls))
        call()
    if progress:
        progress("compiling for this CPU (once)", 1.0)


def _calls() -> list[Callable[[], None]]:
    memory = np.zeros(4 * UNIT, np.uint8)
    memory.flags.writeable = False  # as a mapped file is: the type that is compiled for
    w = PackedMatrix(GGMLType.F32, 1, UNIT, memory)
    n = MAX_VECTORS + 1
    x, y = np.ones((n, UNIT), np.float32), np.empty((n, 1), np.float32)
    heads, seq, pos = x.reshape(n, 1, UNIT), np.zeros(n, np.int32), np.arange(n, dtype=np.int32)
    out = np.empty_like(heads)
    cache = np.ones((1, 1, n, UNIT), np.float32)
    turn = np.ones((n, UNIT // 2), np.float32)
    attend = partial(attention, heads, cache, cache.copy(), seq, pos, 1.0, out)
    return [
        partial(elementwise.rms_norm, x, x[0].copy(), 1e-5, x.copy()),
        partial(elementwise.rotate, heads.copy(), pos, turn, turn, 2, 1),
        partial(elementwise.append, heads, heads, cache, cache, seq, pos),
        partial(elementwise.swiglu, x, x, x.copy()),
        partial(gather_rows, w, seq, x.copy()),
        partial(matmul, w, x[:1], y[:1], accumulate=False),
        partial(matmul, w, x[:2], y[:2], accumulate=False),
        partial(matmul, w, x, y, accumulate=False),
        partial(matmul, DenseMatrix(x[:1].copy()), x[:1], y[:1], accumulate=False),
        attend,
        partial(attention, heads[:1], cache, cache, seq[:1], pos[:1], 1.0, out[:1]),
    ]


def _calls_of_q8_cache() -> list[Callable[[], None]]:
    n, block = MAX_VECTORS + 1, q8_cache.BLOCK
    x, rows = np.ones((n, 1, block), np.float32), np.arange(n, dtype=np.int32)
    seq, out = np.zeros(n, np.int32), np.empty_like(x)
    cache = Q8Cache(np.ones((1, 1, n, block), np.int8), np.ones((1, 1, n, 1), np.float16))
    return [
        partial(q8_cache.append, x, cache, seq, rows),
        partial(q8_cache.attention, x, cache, cache, seq, rows, 1.0, out),
        partial(q8_cache.attention, x[:1], cache, cache, seq[:1], rows[:1], 1.0, out[:1]),
    ]
