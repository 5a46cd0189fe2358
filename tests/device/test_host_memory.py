"""Memory that is there once it is touched."""

import resource
import sys

import numpy as np
import pytest

from m40llm.device import host_memory
from m40llm.device.host_memory import lazy_bytes

MIB = 1 << 20


def resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_nobody_touches_takes_no_memory() -> None:
    before = resident_bytes()
    memory = lazy_bytes(256 * MIB)
    memory[:: 2 * MIB] = 1  # a cache's heads, say
    assert resident_bytes() - before < 64 * MIB
    assert memory.sum() == 128


@pytest.mark.parametrize("n", [0, 1, 100, host_memory._LARGE - 1, host_memory._LARGE + 3])
def test_any_size(n: int) -> None:
    memory = lazy_bytes(n)
    assert memory.shape == (n,)
    memory[...] = 7
    np.testing.assert_array_equal(memory[-3:], [7] * min(n, 3))


def test_more_than_there_is() -> None:
    with pytest.raises(MemoryError, match="bytes"):
        lazy_bytes(1 << 62)
