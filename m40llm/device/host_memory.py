"""The host's memory, for the devices that live in it: `cpu` and `emulator`."""

import contextlib
import mmap
import os
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_LARGE: Final = 1 << 26  # bytes: only a KV cache has so many that nobody may ever touch


def available_bytes() -> int:
    """What the kernel says a new program could take without swapping, within the cgroup's limit."""
    try:
        with open("/proc/meminfo", encoding="ascii") as meminfo:
            fields = dict(line.split(":", 1) for line in meminfo)
        available = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):  # not Linux
        pages = os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 1 << 21
        available = pages * 4096
    try:
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as limit:
            text = limit.read().strip()
        with open("/sys/fs/cgroup/memory.current", encoding="ascii") as current:
            return min(available, int(text) - int(current.read())) if text != "max" else available
    except (OSError, ValueError):
        return available


def lazy_bytes(n: int) -> NDArray[np.uint8]:
    """So many bytes, of which pages of 4 KiB exist once they are touched. MemoryError.

    np.empty asks for pages of 2 MiB: a KV cache, of which each head's first rows are touched, would
    be there as a whole, and zeroed, before the first token.
    """
    if n < _LARGE:
        return np.empty(n, np.uint8)
    private: dict[str, Any] = {}
    if hasattr(mmap, "MAP_PRIVATE"):  # not Windows
        private["flags"] = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    try:
        pages = mmap.mmap(-1, n, **private)
    except (OSError, OverflowError) as error:
        raise MemoryError(f"{n:,} bytes: {error}") from None
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without huge pages
            pages.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(pages, np.uint8)
