"""Matrix products by cuBLAS, in place of our kernels where somebody asks for it; never a need.

    out (+)= x W^T (+ bias)      x [t, n_cols], W [n_rows, n_cols], out [t, n_rows], all FP32

cuBLAS counts columns first. There a row-major [a, b] is a [b, a] whose leading dimension is b:
with W^T = op(A) = T of A [n_cols, n_rows], and x = B [n_cols, t], it makes C = out^T [n_rows, t].
Weights of another type than F32 are dequantised a slab of rows at a time, into scratch memory
that is made once; a slab's product fills its columns of out (its rows of C, ldc apart).

FP32 throughout: the pedantic mode forbids TF32 and the emulation of FP32 by smaller types.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Final, Protocol

import numpy as np
from gguf import GGMLQuantizationType as GGMLType

from m40llm.device.gpu.card import Card
from m40llm.device.packages import CUBLAS_PACKAGES
from m40llm.errors import DeviceError
from m40llm.kernels.add_bias import add_bias
from m40llm.kernels.dequantize_rows import dequantize_rows
from m40llm.kernels.planes import Planes, check_planes

Buffer = Any
SCRATCH_BYTES: Final = 64 << 20  # of one slab of weights in FP32
WORKSPACE_BYTES: Final = 32 << 20  # what cuBLAS recommends for Hopper; others need 4 MiB
NO_TRANSPOSE, TRANSPOSE = 0, 1  # cublasOperation_t
POINTERS_ON_HOST = 0  # cublasPointerMode_t: alpha and beta
PEDANTIC_MATH = 2  # cublasMath_t


class StreamCard(Card, Protocol):
    """A card whose launches go to a stream that others can enqueue to."""

    @property
    def stream_handle(self) -> int:
        """The CUstream."""
        ...


class CublasProducts:
    """Implements `device.gpu.ops.Products` by the functions of `blas`, nvmath.bindings.cublas."""

    def __init__(self, card: StreamCard, blas: Any, scratch_bytes: int = SCRATCH_BYTES) -> None:
        self._card, self._blas = card, blas
        self._scratch = card.alloc((scratch_bytes // 4,), np.dtype(np.float32))
        self._workspace = card.alloc((WORKSPACE_BYTES // 4,), np.dtype(np.float32))
        self._slab = cache(self._make_slab)  # decode asks for the same few every step
        self._one, self._zero = np.ones(1, np.float32), np.zeros(1, np.float32)
        with self._as_device_error("cuBLAS: opening it"):
            self._handle = blas.create()
            # Not at the interpreter's end, where the driver may have gone before.
            weakref.finalize(self, blas.destroy, self._handle).atexit = False
            blas.set_stream(self._handle, card.stream_handle)
            # After the stream, which takes it away. Ours is as large in a graph's capture.
            blas.set_workspace(self._handle, _address(self._workspace), WORKSPACE_BYTES)
            blas.set_pointer_mode(self._handle, POINTERS_ON_HOST)
            blas.set_math_mode(self._handle, PEDANTIC_MATH)

    def matmul(
        self, w: Planes, x: Buffer, out: Buffer, bias: Buffer | None, accumulate: bool
    ) -> None:
        """out (+)= x W^T (+ bias)"""
        check_planes(w)
        if w.type == GGMLType.F32:
            self._multiply(w.quants, w.n_cols, x, out, 0, w.n_rows, accumulate)
        else:
            n_slab = max(1, int(self._scratch.shape[0]) // w.n_cols)
            for first_row in range(0, w.n_rows, n_slab):
                n_rows = min(n_slab, w.n_rows - first_row)
                slab = self._slab(n_rows, w.n_cols)
                dequantize_rows(w, first_row, slab, stream=self._card)
                self._multiply(slab, w.n_cols, x, out, first_row, n_rows, accumulate)
        if bias is not None:
            add_bias(bias, out, stream=self._card)

    def _multiply(
        self,
        weights: Buffer,
        n_cols: int,
        x: Buffer,
        out: Buffer,
        first_row: int,
        n_rows: int,
        accumulate: bool,
    ) -> None:
        """Columns first_row ... of out from FP32 weights [n_rows, n_cols]."""
        n_tokens, n_out = out.shape
        beta = self._one if accumulate else self._zero
        with self._as_device_error(f"cuBLAS: a product [{n_tokens}, {n_cols}] x [{n_out}] rows"):
            self._blas.sgemm(
                self._handle,
                TRANSPOSE,
                NO_TRANSPOSE,
                n_rows,  # m
                n_tokens,  # n
                n_cols,  # k
                self._one.ctypes.data,  # alpha
                _address(weights),
                n_cols,  # lda
                _address(x),
                n_cols,  # ldb
                beta.ctypes.data,
                _address(out) + 4 * first_row,
                n_out,  # ldc
            )

    def _make_slab(self, n_rows: int, n_cols: int) -> Buffer:
        return self._scratch[: n_rows * n_cols].reshape(n_rows, n_cols)

    @contextmanager
    def _as_device_error(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # cuBLASError, or what the binding raises without its library
            free = f"{self._card.free_bytes() / 1e6:.1f} MB free"
            hint = f"; where the library is missing: {CUBLAS_PACKAGES}"
            missing = hint if isinstance(error, RuntimeError) else ""  # cuBLASError is none
            raise DeviceError(f"{what}: {error}; {free}{missing}") from error


def _address(buffer: Buffer) -> int:
    return int(buffer.address)


def open_cublas(card: StreamCard) -> CublasProducts:
    """The products on this card. DeviceError where the packages are missing."""
    try:
        from nvmath.bindings import cublas
    except ImportError as error:
        raise DeviceError(f"cublas: {error}; it needs: {CUBLAS_PACKAGES}") from None
    return CublasProducts(card, cublas)
