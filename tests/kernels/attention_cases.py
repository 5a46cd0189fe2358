"""What the tests of both attention kernels share: sparse caches and guard rows."""

import mmap
from typing import Any

import numpy as np

from m40llm.fuzz.attention import Case, poisoned_cache

__all__ = [
    "Array",
    "Case",
    "assert_guards_hold",
    "huge_cache",
    "near_case",
    "poisoned_cache",
    "with_guards",
]
Array = np.ndarray


def huge_cache(shape: tuple[int, ...]) -> Array:
    """A float16 cache of zeros of which only what is touched takes memory."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    memory = mmap.mmap(-1, int(np.prod(shape, dtype=np.int64)) * 2, flags=flags)
    return np.frombuffer(memory, np.float16).reshape(shape)


def near_case(case: Case, n_keys: int) -> Case:
    """The same with only the last `n_keys` keys up to each row's sequence's last row."""
    last = {s: case.pos[case.seq == s].max() for s in case.seq}
    k, v = (
        np.stack([cache[s, :, last[s] + 1 - n_keys : last[s] + 1] for s in sorted(last)])
        for cache in (case.k, case.v)
    )
    seq = np.searchsorted(sorted(last), case.seq).astype(np.int32)
    pos = case.pos - np.array([last[s] for s in case.seq]) + n_keys - 1
    return Case(case.q, k, v, seq, pos.astype(np.int32), case.scale, case.window, case.softcap)


def with_guards(launcher: Any, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """A buffer that nothing has written to (NaN), and all of it but a guard row at either end."""
    buffer = launcher.poisoned((shape[0] + 2, *shape[1:]))
    return buffer, buffer[1:-1]


def assert_guards_hold(launcher: Any, buffer: Any) -> None:
    assert np.isnan(launcher.read(buffer)[[0, -1]]).all()
