"""The host's memory, for the devices that live in it: `cpu` and `emulator`."""

import os


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
