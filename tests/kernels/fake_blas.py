"""nvmath.bindings.cublas in NumPy: sgemm on host memory, columns first as BLAS has it."""

import ctypes
from typing import Any

import numpy as np


class FakeBlas:
    """Records what it is asked; `fails` is raised by the next product."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.settings: dict[str, tuple[int, ...]] = {}
        self.fails: Exception | None = None

    def create(self) -> int:
        return 99

    def destroy(self, handle: int) -> None:
        self.settings["destroyed"] = (handle,)

    def set_stream(self, handle: int, stream: int) -> None:
        assert "workspace" not in self.settings, "a new stream takes the workspace away"
        self.settings["stream"] = (handle, stream)

    def set_workspace(self, handle: int, address: int, n_bytes: int) -> None:
        self.settings["workspace"] = (address, n_bytes)

    def set_pointer_mode(self, handle: int, mode: int) -> None:
        self.settings["pointer_mode"] = (handle, mode)

    def set_math_mode(self, handle: int, mode: int) -> None:
        self.settings["math_mode"] = (handle, mode)

    def sgemm(
        self,
        handle: int,
        transa: int,
        transb: int,
        m: int,
        n: int,
        k: int,
        alpha: int,
        a: int,
        lda: int,
        b: int,
        ldb: int,
        beta: int,
        c: int,
        ldc: int,
    ) -> None:
        """C = alpha op(A) op(B) + beta C; op(A) is [m, k], op(B) [k, n], C [m, n]."""
        if self.fails is not None:
            raise self.fails
        self.calls.append((transa, transb, m, n, k, lda, ldb, ldc))
        op_a = columns_first(a, k, m, lda).T if transa else columns_first(a, m, k, lda)
        op_b = columns_first(b, n, k, ldb).T if transb else columns_first(b, k, n, ldb)
        out = columns_first(c, m, n, ldc)
        scale, keep = columns_first(alpha, 1, 1, 1)[0, 0], columns_first(beta, 1, 1, 1)[0, 0]
        product = scale * (op_a @ op_b)
        out[...] = product + keep * out if keep else product  # beta 0 does not read C


def columns_first(address: int, n_rows: int, n_cols: int, ld: int) -> np.ndarray:
    """A view [n_rows, n_cols] of memory whose element (r, c) is number c * ld + r."""
    assert ld >= n_rows, "the leading dimension is at least a column's length"
    n = ld * (n_cols - 1) + n_rows
    flat = np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(ctypes.c_float)), (n,))
    return np.lib.stride_tricks.as_strided(flat, (n_rows, n_cols), (4, 4 * ld))
