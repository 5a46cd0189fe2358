"""A CUDA card: memory, launches, and what went wrong in words that say what to do."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numba import cuda
from numba.cuda.cudadrv.driver import CudaAPIError
from numpy.typing import NDArray

from m40llm.errors import DeviceError
from m40llm.kernels.contract import Dim, Kernel

Buffer = Any


class CudaCard:
    """Implements `device.gpu.card.Card` on card number `index`."""

    def __init__(self, index: int) -> None:
        with _as_device_error("opening the card"):
            cuda.select_device(index)
            self._card = cuda.get_current_device()
        self.name = f"cuda:{index}"
        self.n_sms = int(self._card.MULTIPROCESSOR_COUNT)
        self.n_launches = 0
        self._compiled: dict[Kernel, Any] = {}

    def free_bytes(self) -> int:
        return int(cuda.current_context().get_memory_info().free)

    def launch(
        self, kernel: Kernel, grid: Dim, block: Dim, *args: Any, shared_bytes: int = 0
    ) -> None:
        with _as_device_error(f"kernel {kernel.name}"):
            self._jitted(kernel)[grid, block, 0, shared_bytes](*args)
        self.n_launches += 1

    def _jitted(self, kernel: Kernel) -> Any:
        if kernel not in self._compiled:
            limits = {} if kernel.registers is None else {"max_registers": kernel.registers}
            self._compiled[kernel] = cuda.jit(fastmath=kernel.fastmath, **limits)(kernel.function)
        return self._compiled[kernel]

    def alloc(self, shape: tuple[int, ...], dtype: Any) -> Buffer:
        n_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        with _as_device_error(f"allocating {n_bytes / 1e6:.1f} MB"):
            return cuda.device_array(shape, dtype)

    def upload(self, values: NDArray[Any]) -> Buffer:
        values = np.ascontiguousarray(values)
        buffer = self.alloc(values.shape, values.dtype)
        self.write(buffer, values)
        return buffer

    def write(self, buffer: Buffer, values: NDArray[Any]) -> None:
        with _as_device_error(f"writing {values.nbytes / 1e6:.1f} MB to the card"):
            buffer.copy_to_device(values)

    def read(self, buffer: Buffer) -> NDArray[Any]:
        with _as_device_error("waiting for the card"):
            values: NDArray[Any] = buffer.copy_to_host()
        return values


@contextmanager
def _as_device_error(what: str) -> Iterator[None]:
    """A driver's error as DeviceError: what was asked, and what is free."""
    try:
        yield
    except CudaAPIError as error:
        try:
            free = f"; {cuda.current_context().get_memory_info().free / 1e6:.1f} MB free"
        except CudaAPIError:
            free = "; the card does not answer any more: start again"
        raise DeviceError(f"{what}: {error}{free}") from error
