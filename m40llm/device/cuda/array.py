"""An array in a card's memory: shape, strides, slices and views, as NumPy has them."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m40llm.device.cuda import dlpack


class _Address:
    """Lends an address to NumPy, so that it does the arithmetic of views."""

    def __init__(self, address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.__array_interface__ = {
            "version": 3,
            "data": (address, False),
            "shape": shape,
            "typestr": dtype.str,
        }


class DeviceArray:
    """A view of device memory. `owner` keeps the memory alive.

    `_view` is a NumPy array at the device's address: nobody may read or write its elements.
    """

    def __init__(self, view: NDArray[Any], owner: Any) -> None:
        self._view = view
        self._owner = owner
        self.shape, self.strides, self.dtype = view.shape, view.strides, view.dtype
        self.ndim, self.size, self.nbytes = view.ndim, view.size, view.nbytes
        self.flags = view.flags
        self.address: int = view.__array_interface__["data"][0]
        # A kernel's parameters as Numba flattens an array (its first two are for the host alone),
        # and what tells compiled kernels apart; both made once, for launches to be cheap.
        self.parameters = (0, 0, self.size, view.itemsize, self.address, *self.shape, *self.strides)
        self.kind = (self.dtype.char, self.ndim, self.flags.c_contiguous, self.flags.f_contiguous)

    @classmethod
    def at(cls, address: int, shape: tuple[int, ...], dtype: Any, owner: Any) -> "DeviceArray":
        """A C-contiguous array at this address."""
        return cls(np.asarray(_Address(address, shape, np.dtype(dtype))), owner)

    def __getitem__(self, index: Any) -> "DeviceArray":
        index = index if isinstance(index, tuple) else (index,)
        if Ellipsis not in index:  # so that a single element, too, is a view: NumPy reads nothing
            index = (*index, Ellipsis)
        return DeviceArray(self._view[index], self._owner)

    def __len__(self) -> int:
        return len(self._view)

    def reshape(self, *shape: Any) -> "DeviceArray":
        """A view; only C-contiguous arrays have one of any shape."""
        if not self.flags.c_contiguous:
            raise ValueError("reshape: expected an array in C order")
        return DeviceArray(self._view.reshape(*shape), self._owner)

    def view(self, dtype: Any) -> "DeviceArray":
        """The same bytes as another type."""
        return DeviceArray(self._view.view(dtype), self._owner)

    def contiguous_parts(self) -> Iterator[tuple[tuple[int, ...], "DeviceArray"]]:
        """(index, view) of the largest C-contiguous parts that make up the array."""
        n_outer, part = 0, self._view
        while not part.flags.c_contiguous:
            n_outer, part = n_outer + 1, part[0]
        for index in itertools.product(*map(range, self.shape[:n_outer])):
            yield index, self[index] if index else self

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CUDA, self._owner.context.index

    def __dlpack__(self, **_: Any) -> Any:
        """For torch.from_dlpack and its like, which get the memory itself, its values all there."""
        self._owner.context.finish()
        where = self.address, self.shape, self.strides, self.dtype
        return dlpack.capsule(*where, self.__dlpack_device__(), self._owner)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """For torch.as_tensor, CuPy and Numba; as `__dlpack__`."""
        self._owner.context.finish()
        strides = None if self.flags.c_contiguous else self.strides
        data = (self.address, False)
        return {
            "version": 3,
            "data": data,
            "shape": self.shape,
            "strides": strides,
            "typestr": self.dtype.str,
        }

    def __repr__(self) -> str:
        return f"DeviceArray({self.dtype.name}{list(self.shape)})"
