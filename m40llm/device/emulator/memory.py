"""Device memory: NumPy arrays whose bounds, writes and first writes the access check knows.

An array from `alloc` or `upload` is an ordinary NumPy array. It counts as live for as long as
anybody holds it or a view of it; 256 bytes on both sides of it belong to nobody.
"""

import weakref
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.lib.array_utils import byte_bounds
from numpy.typing import ArrayLike, DTypeLike, NDArray

from m40llm.device.emulator.records import REGION, WRITTEN

GUARD_BYTES: Final = 256  # also the alignment of an allocation, as on a card
POISON_LIMIT_BYTES: Final = 1 << 30  # beyond, pages that nobody touches take no memory
Array = NDArray[Any]


@dataclass(frozen=True)
class Allocation:
    """One array of device memory."""

    begin: int
    end: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    shadow: Array | None  # uint8, one a byte: has it been written? None: all of it
    read_only: bool

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


class DeviceMemory:
    """The arrays that are alive, and the table of them that a launch hands to the check."""

    def __init__(self) -> None:
        self._live: dict[int, Allocation] = {}
        self._cached: tuple[list[int], list[Allocation], Array] | None = None

    def alloc(self, shape: int | Sequence[int], dtype: DTypeLike, fill: Any = None) -> Array:
        """A new array; with no `fill`, reading what nobody wrote is an error."""
        array = self._new(shape, np.dtype(dtype), tracked=fill is None)
        if fill is None and array.nbytes <= POISON_LIMIT_BYTES:
            array.reshape(-1).view(np.uint8)[...] = 0xFF  # NaN in every floating-point type
        elif fill is not None and fill != 0:
            array[...] = fill
        return array

    def upload(self, values: ArrayLike, *, read_only: bool = False) -> Array:
        """A copy of the values in device memory; kernels may not write to a `read_only` one."""
        values = np.asarray(values)
        array = self._new(values.shape, values.dtype, tracked=False, frozen=read_only)
        array[...] = values
        array.flags.writeable = not read_only
        return array

    def write(self, array: Array, values: ArrayLike) -> None:
        """Copy values from the host into (a view of) a device array: it counts as written."""
        array[...] = values
        begin, end = byte_bounds(array)
        allocation = self.owner(begin)
        if allocation is not None and allocation.shadow is not None:
            allocation.shadow[begin - allocation.begin : end - allocation.begin] = WRITTEN

    def _new(
        self,
        shape: int | Sequence[int],
        dtype: np.dtype[Any],
        *,
        tracked: bool,
        frozen: bool = False,
    ) -> Array:
        sizes = (shape,) if isinstance(shape, int) else tuple(shape)
        n_bytes = int(np.prod(sizes, dtype=np.int64)) * dtype.itemsize
        buffer = np.zeros(n_bytes + 3 * GUARD_BYTES, np.uint8)
        start = GUARD_BYTES + -buffer.ctypes.data % GUARD_BYTES
        array = buffer[start : start + n_bytes].view(dtype).reshape(sizes)
        shadow = np.zeros(n_bytes, np.uint8) if tracked else None
        begin = buffer.ctypes.data + start
        weakref.finalize(buffer, self._forget, begin)
        allocation = Allocation(begin, begin + n_bytes, sizes, dtype, shadow, frozen)
        self._live[begin] = allocation
        self._cached = None
        return array

    def owner(self, address: int) -> Allocation | None:
        """The live allocation in which an address lies."""
        begins, allocations, _ = self._sorted()
        i = bisect_right(begins, address) - 1
        return allocations[i] if i >= 0 and address < allocations[i].end else None

    def table(self, arguments: Sequence[Array]) -> tuple[Array, list[Allocation]]:
        """REGION records, sorted and apart, of all that is alive and of a launch's arguments."""
        _, allocations, table = self._sorted()
        visitors = [a for a in arguments if a.size and self.owner(byte_bounds(a)[0]) is None]
        if visitors:
            allocations = sorted([*allocations, *_merged(visitors)], key=lambda a: a.begin)
            return _records(allocations), allocations
        return table.copy(), allocations

    def _sorted(self) -> tuple[list[int], list[Allocation], Array]:
        """The live allocations by address; made anew when one has come or gone."""
        if self._cached is None:
            allocations = [self._live[begin] for begin in sorted(self._live)]
            self._cached = [a.begin for a in allocations], allocations, _records(allocations)
        return self._cached

    def _forget(self, begin: int) -> None:
        self._live.pop(begin, None)
        self._cached = None


def _merged(arrays: Sequence[Array]) -> list[Allocation]:
    """Arrays that are not the emulator's, as allocations; those that overlap become one."""
    found: list[Allocation] = []
    for array in sorted(arrays, key=lambda a: byte_bounds(a)[0]):
        begin, end = byte_bounds(array)
        read_only = not array.flags.writeable
        if found and begin < found[-1].end:
            last = found.pop()
            begin, end = last.begin, max(end, last.end)
            read_only = read_only and last.read_only
        found.append(Allocation(begin, end, array.shape, array.dtype, None, read_only))
    return found


def _records(allocations: Sequence[Allocation]) -> Array:
    """REGION records; at least one, so that there is an address to hand over."""
    rows = [
        (a.begin, a.end, 0 if a.shadow is None else a.shadow.ctypes.data, int(a.read_only), 0)
        for a in allocations
    ]
    return np.array(rows or [(0, 0, 0, 0, 0)], REGION)
