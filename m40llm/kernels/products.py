"""The inner loop of all matrix products here: a thread's sums are outer products of columns.

    acc[i, j] += x[i] * w[j]     i < n_x, j < n_w, for column after column of two tiles in shared
                                 memory, [column][element]; a column is loaded while the one before
                                 it is multiplied

Whoever uses it says how a thread loads its part of a column: load_column(pool, x_at, w_at, x, w).
"""

from functools import cache
from typing import Any, NamedTuple

from numba import cuda, float32


@cache
def _add_products(n_x: int, n_w: int) -> Any:
    """Of one column: to and fro, so that each product has a factor in common with the one before,
    which spares the registers a read (the assembler's `.reuse`)."""

    @cuda.jit(device=True, forceinline=True)
    def add_products(x: Any, w: Any, acc: Any) -> None:
        for i in range(n_x):
            for j in range(n_w):
                k = n_w - 1 - j if i & 1 else j
                acc[i, k] += x[i] * w[k]

    return add_products


class Columns(NamedTuple):
    """How the columns of a tile lie in shared memory, in what an index of it counts.

    gap   after so many columns of them: where the threads of a warp store parts of columns, so that
          they come to different banks
    """

    pitch: int
    gap: int = 0
    gap_columns: int = 4

    def offset(self, column: int) -> int:
        return column * self.pitch + column // self.gap_columns * self.gap


@cache
def _offset(columns: Columns) -> Any:
    """The same on the device, where a literal column gives a constant."""
    pitch, gap, gap_columns = columns

    @cuda.jit(device=True, forceinline=True)
    def offset(column: Any) -> Any:
        return column * pitch + column // gap_columns * gap

    return offset


@cache
def multiply_quarter(
    load_column: Any, n_x: int, n_w: int, of_x: Columns, of_w: Columns, n_quarters: int
) -> Any:
    """multiply(pool, x_at, w_at, acc, x, w, quarter): four columns of a step of 4 * n_quarters.

    x_at, w_at   where the thread's part of the step's first column begins, int64: an offset that is
                 added to an index of 64 bits is part of the instruction that loads
    x, w         hold the quarter's first column, and then the next quarter's
    quarter      a literal

    Written out, because LLVM leaves a loop over bodies of this size as it is: 3 % more FFMA.
    """
    add_products, x_of, w_of = _add_products(n_x, n_w), _offset(of_x), _offset(of_w)

    @cuda.jit(device=True, forceinline=True)
    def multiply(pool: Any, x_at: Any, w_at: Any, acc: Any, x: Any, w: Any, quarter: Any) -> None:
        x_then, w_then = cuda.local.array(n_x, float32), cuda.local.array(n_w, float32)
        c = 4 * quarter
        load_column(pool, x_at + x_of(c + 1), w_at + w_of(c + 1), x_then, w_then)
        add_products(x, w, acc)
        load_column(pool, x_at + x_of(c + 2), w_at + w_of(c + 2), x, w)
        add_products(x_then, w_then, acc)
        load_column(pool, x_at + x_of(c + 3), w_at + w_of(c + 3), x_then, w_then)
        add_products(x, w, acc)
        if quarter < n_quarters - 1:
            load_column(pool, x_at + x_of(c + 4), w_at + w_of(c + 4), x, w)
        add_products(x_then, w_then, acc)

    return multiply
