"""Copies between host and card through two pinned buffers: one fills while the other travels."""

import ctypes
import weakref
from typing import Any, Final

import numpy as np
from cuda.bindings import driver
from numpy.typing import NDArray

from m40llm.device.cuda.driver import call

CHUNK_BYTES: Final = 16 << 20

Bytes = NDArray[np.uint8]


class Staging:
    """Two page-locked buffers. Copies are ordered as the stream's other work is."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._chunks = [_Chunk() for _ in range(2)]
        self._next = 0

    def write(self, address: int, values: Bytes) -> None:
        """Host -> card. Returns once the values may be changed, which is before they arrive."""
        for first in range(0, values.size, CHUNK_BYTES):
            piece, chunk = values[first : first + CHUNK_BYTES], self._free_chunk()
            chunk.bytes[: piece.size] = piece
            call(
                driver.cuMemcpyHtoDAsync,
                address + first,
                chunk.bytes.ctypes.data,
                piece.size,
                self._stream,
            )
            call(driver.cuEventRecord, chunk.done, self._stream)

    def read(self, address: int, values: Bytes) -> None:
        """Card -> host, after all work that was enqueued."""
        pending: tuple[_Chunk, Bytes] | None = None
        for first in range(0, values.size, CHUNK_BYTES):
            piece, chunk = values[first : first + CHUNK_BYTES], self._free_chunk()
            call(
                driver.cuMemcpyDtoHAsync,
                chunk.bytes.ctypes.data,
                address + first,
                piece.size,
                self._stream,
            )
            call(driver.cuEventRecord, chunk.done, self._stream)
            if pending:
                _arrive(*pending)
            pending = chunk, piece
        if pending:
            _arrive(*pending)

    def _free_chunk(self) -> "_Chunk":
        chunk = self._chunks[self._next]
        self._next = 1 - self._next
        call(driver.cuEventSynchronize, chunk.done)
        return chunk


def _arrive(chunk: "_Chunk", piece: Bytes) -> None:
    call(driver.cuEventSynchronize, chunk.done)
    piece[...] = chunk.bytes[: piece.size]


class _Chunk:
    def __init__(self) -> None:
        address = int(call(driver.cuMemHostAlloc, CHUNK_BYTES, 0))
        weakref.finalize(self, driver.cuMemFreeHost, address)
        memory = (ctypes.c_uint8 * CHUNK_BYTES).from_address(address)
        self.bytes: Bytes = np.ctypeslib.as_array(memory)
        self.done = call(driver.cuEventCreate, 0)  # freed with the process
