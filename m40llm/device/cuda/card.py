"""A CUDA card: memory, launches, graphs, and what went wrong in words that say what to do.

Numba compiles; all else goes straight to the driver: a launch through Numba's dispatcher costs
some 190 us of Python for a kernel of five arrays, one from here a tenth of that.
"""

import ctypes
import threading
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final

import numpy as np
from cuda.bindings import driver
from numba.cuda.core import config
from numpy.typing import NDArray

from m40llm.device.cuda.array import DeviceArray
from m40llm.device.cuda.context import Context
from m40llm.device.cuda.driver import STREAM_WITHOUT_LEGACY_SYNC as NON_BLOCKING
from m40llm.device.cuda.driver import DriverError, call, release_of, text_of
from m40llm.device.cuda.graph import Event, Graph
from m40llm.device.cuda.modules import Modules, flatten
from m40llm.device.cuda.requirements import driver_release
from m40llm.device.cuda.staging import Staging
from m40llm.device.gpu.compiler import Capability
from m40llm.errors import DeviceError
from m40llm.kernels.contract import Dim, Kernel
from m40llm.progress import Progress

NAME_BYTES: Final = 256  # of a card's name at most


class CudaCard:
    """Implements `device.gpu.card.Card` on card number `index`; one stream orders all its work.

    Code is made for the card's own architecture, or for the one in NUMBA_FORCE_CUDA_CC.
    """

    def __init__(self, index: int) -> None:
        self.name = f"cuda:{index}"
        self.n_launches = 0
        self._threads: set[int] = set()
        self._graph: Graph | None = None
        with _as_device_error(f"opening {self.name}"):
            self._context = Context(index)
            self.device = self._context.device
            self._bind()
            self.capability: Capability = (
                self.attribute("COMPUTE_CAPABILITY_MAJOR"),
                self.attribute("COMPUTE_CAPABILITY_MINOR"),
            )
            self.n_sms = self.attribute("MULTIPROCESSOR_COUNT")
            self.has_time_limit = bool(self.attribute("KERNEL_EXEC_TIMEOUT"))
            self.max_steps = 32 if self.has_time_limit else 1 << 20
            self._stream = call(driver.cuStreamCreate, NON_BLOCKING)
            self._staging = Staging(self._stream)
            self._modules = Modules(self.capability, config.FORCE_CUDA_CC or self.capability)

    @property
    def stream_handle(self) -> int:
        """The CUstream, as a number that other libraries take."""
        return int(self._stream)

    @property
    def target(self) -> str:
        """What code is made for: "sm_52"."""
        return self._modules.compiling.target

    @property
    def about(self) -> str:
        with _as_device_error(f"asking for the name of {self.name}"):
            name = call(driver.cuDeviceGetName, NAME_BYTES, self.device)
            version = call(driver.cuDriverGetVersion)
        return "{}, sm_{}{}, code for {}, driver {} (CUDA {})".format(
            *(text_of(name), *self.capability, self.target),
            *(driver_release() or "of unknown release", release_of(version)),
        )

    @property
    def n_compiled(self) -> int:
        """Kernels compiled by this process, not found on disk."""
        return self._modules.compiling.n_compiled

    def tell_compiling(self, progress: Progress | None) -> None:
        self._modules.compiling.progress = progress

    def free_bytes(self) -> int:
        self._bind()
        with _as_device_error("asking for free memory"):
            return int(call(driver.cuMemGetInfo)[0])

    def launch(
        self, kernel: Kernel, grid: Dim, block: Dim, *args: Any, shared_bytes: int = 0
    ) -> None:
        self._bind()
        with _as_device_error(f"kernel {kernel.name}"):
            words = flatten(args)
            function = self._modules.function(kernel, args, len(words))
            function.slots[:] = words
            call(
                driver.cuLaunchKernel,
                function.handle,
                *_three(grid),
                *_three(block),
                shared_bytes,
                self._stream if self._graph is None else self._graph.stream,
                function.pointers_address,
                0,
            )
        self.n_launches += 1
        if self._graph is not None:
            self._graph.keep_alive.append(args)

    def alloc(self, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        n_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        self._bind()
        with _as_device_error(f"allocating {n_bytes / 1e6:.1f} MB"):
            memory = _Memory(max(n_bytes, 1), self._context)
        return DeviceArray.at(memory.address, tuple(shape), dtype, memory)

    def alloc_mapped(self, shape: tuple[int, ...], dtype: Any) -> tuple[DeviceArray, NDArray[Any]]:
        n_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        self._bind()
        with _as_device_error(f"allocating {n_bytes / 1e6:.1f} MB of pinned memory"):
            memory = _MappedMemory(n_bytes, self._context)
        array = DeviceArray.at(memory.address, tuple(shape), dtype, memory)
        return array, memory.bytes.view(dtype).reshape(shape)

    def upload(self, values: NDArray[Any]) -> DeviceArray:
        values = np.asarray(values)
        buffer = self.alloc(values.shape, values.dtype)
        self.write(buffer, values)
        return buffer

    def write(self, buffer: DeviceArray, values: NDArray[Any]) -> None:
        values = np.ascontiguousarray(values, buffer.dtype)
        if values.shape != buffer.shape:
            values = np.ascontiguousarray(np.broadcast_to(values, buffer.shape))
        self._bind()
        with _as_device_error(f"writing {values.nbytes / 1e6:.1f} MB to the card"):
            for index, part in buffer.contiguous_parts():
                self._staging.write(part.address, _bytes_of(values[index]))

    def read(self, buffer: DeviceArray) -> NDArray[Any]:
        values = np.empty(buffer.shape, buffer.dtype)
        self._bind()
        with _as_device_error("waiting for the card"):
            for index, part in buffer.contiguous_parts():
                self._staging.read(part.address, _bytes_of(values[index]))
        return values

    def copy(self, source: DeviceArray, out: DeviceArray) -> None:
        self._bind()
        with _as_device_error(f"copying {source.nbytes / 1e6:.1f} MB on the card"):
            for index, part in source.contiguous_parts():
                to = out[index] if index else out
                call(driver.cuMemcpyDtoDAsync, to.address, part.address, part.nbytes, self._stream)

    def synchronize(self) -> None:
        """Wait for all work that was enqueued."""
        self._bind()
        with _as_device_error("waiting for the card"):
            call(driver.cuStreamSynchronize, self._stream)

    def event(self) -> Event:
        """A point in the stream's work, for `has_come` and `elapsed_ms`."""
        self._bind()
        with _as_device_error("recording an event"):
            return Event(self._stream)

    def has_come(self, event: Event) -> bool:
        """Whether the work before the event is done."""
        self._bind()
        with _as_device_error("waiting for the card"):
            return event.has_come()

    def elapsed_ms(self, start: Event, stop: Event) -> float:
        """Between two events, once the second has come."""
        with _as_device_error("waiting for the card"):
            call(driver.cuEventSynchronize, stop.handle)
            return float(call(driver.cuEventElapsedTime, start.handle, stop.handle))

    @contextmanager
    def capture(self) -> Iterator[Graph]:
        """Launches inside are recorded, not run: `graph.replay()` runs them all.

        Kernels must have been compiled, that is launched, before.
        """
        self._bind()
        graph = Graph(self._stream)
        with _as_device_error("capturing a graph"):
            graph.begin()
            self._graph = graph
            try:
                yield graph
            finally:
                self._graph = None
                graph.end()

    def beside(self) -> AbstractContextManager[None]:
        return nullcontext() if self._graph is None else self._graph.beside()

    def join(self) -> None:
        if self._graph is not None:
            self._graph.join()

    def _bind(self) -> None:
        """The card's context belongs to a thread: make it this one's at its first call."""
        thread = threading.get_ident()
        if thread not in self._threads:
            with _as_device_error(f"opening {self.name}"):
                self._context.bind()
            self._threads.add(thread)

    def attribute(self, name: str) -> int:
        """A number of CUdevice_attribute, by the end of its name."""
        attribute = getattr(driver.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(call(driver.cuDeviceGetAttribute, attribute, self.device))


class _Memory:
    """Device memory, freed with the last array that looks at it."""

    def __init__(self, n_bytes: int, context: Context) -> None:
        self.context = context
        self.address = int(call(driver.cuMemAlloc, n_bytes))
        weakref.finalize(self, context.give_back, driver.cuMemFree, self.address)


class _MappedMemory:
    """Zeroed page-locked memory that host and card both see; freed with its last device array."""

    def __init__(self, n_bytes: int, context: Context) -> None:
        self.context = context
        host = int(call(driver.cuMemHostAlloc, n_bytes, driver.CU_MEMHOSTALLOC_DEVICEMAP))
        weakref.finalize(self, context.give_back, driver.cuMemFreeHost, host)
        memory = (ctypes.c_uint8 * n_bytes).from_address(host)
        self.bytes: NDArray[np.uint8] = np.ctypeslib.as_array(memory)
        self.bytes[...] = 0
        self.address = int(call(driver.cuMemHostGetDevicePointer, host, 0))


def _three(size: Dim) -> tuple[int, int, int]:
    x, y, z = (*((size,) if isinstance(size, int | np.integer) else size), 1, 1)[:3]
    return int(x), int(y), int(z)


def _bytes_of(values: NDArray[Any]) -> NDArray[np.uint8]:
    return values.reshape(-1).view(np.uint8)


@contextmanager
def _as_device_error(what: str) -> Iterator[None]:
    """A driver's error as DeviceError: what was asked, and what is free."""
    try:
        yield
    except DriverError as error:
        try:
            free = f"; {call(driver.cuMemGetInfo)[0] / 1e6:.1f} MB free"
        except DriverError:
            free = "; the card does not answer any more: start again"
        raise DeviceError(f"{what}: {error}{free}") from error
