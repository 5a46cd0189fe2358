"""Capsules that other libraries take: checked by NumPy, with memory of the host."""

import gc
import sys
import weakref
from typing import Any

import numpy as np
import pytest

from m40llm.device.cuda import dlpack

CPU = (1, 0)


class Lender:
    """An array of the host, lent by our capsules."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __dlpack__(self, **_: Any) -> Any:
        a = self.array
        address = a.__array_interface__["data"][0]
        return dlpack.capsule(address, a.shape, a.strides, a.dtype, CPU, self)

    def __dlpack_device__(self) -> tuple[int, int]:
        return CPU


ARRAYS = [
    np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    np.arange(24, dtype=np.float16).reshape(4, 6)[::2, 1:4],
    np.arange(6, dtype=np.uint8).reshape(2, 3).T,
    np.arange(5, dtype=np.int32),
    np.array(7.5),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype}{a.shape}")
def test_what_numpy_takes(array: np.ndarray) -> None:
    taken = np.from_dlpack(Lender(array))
    assert taken.dtype == array.dtype
    np.testing.assert_array_equal(taken, array)
    assert np.shares_memory(taken, array)


def test_memory_lives_as_long_as_it_is_taken() -> None:
    lender = Lender(np.arange(4.0))
    lives = weakref.ref(lender)
    taken = np.from_dlpack(lender)
    part = taken[1:]
    del lender, taken
    gc.collect()
    assert lives() is not None
    np.testing.assert_array_equal(part, [1, 2, 3])
    del part
    gc.collect()
    assert lives() is None


def test_a_capsule_that_nobody_takes() -> None:
    lender = Lender(np.arange(4.0))
    lives = weakref.ref(lender)
    for _ in range(100):
        lender.__dlpack__()
    n_refs = sys.getrefcount(lender)
    assert n_refs <= 3
    del lender
    gc.collect()
    assert lives() is None


@pytest.mark.parametrize(
    "array", [np.zeros(3, "U2"), np.zeros(4, np.dtype("f4,u1"))["f0"]], ids=["text", "strides"]
)
def test_what_dlpack_has_not(array: np.ndarray) -> None:
    with pytest.raises(BufferError, match="no DLPack"):
        Lender(array).__dlpack__()
