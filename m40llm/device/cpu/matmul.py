"""y[t, r] = sum_c W[r, c] * x[t, c] with W in the file's own blocks, read where they lie.

One token is a matrix-vector product over the packed blocks, which reads the bytes of the file and
nothing else. Up to MAX_VECTORS tokens, of as many sequences or one, share the unpacking of a few
rows (vectors.py), and each gets the bits that it gets alone: what a request is answered does not
depend on the others in the batch. More (prefill) multiply a tile of unpacked rows with panels of 16
tokens, whose sums have another order. All were measured against BLAS on unpacked weights; see
LOG.md.
"""

from dataclasses import dataclass

import numpy as np
from gguf import GGMLQuantizationType as GGMLType
from numba import njit, prange
from numpy.typing import NDArray

from m40llm.device.cpu.formats import FORMATS, UNIT
from m40llm.device.cpu.panel import TILE_ROWS, multiply_tile, pack_panel
from m40llm.device.cpu.rows import COLS_AT_ONCE, JIT, KINDS, dot_row, unpack_row, unpack_rows
from m40llm.device.cpu.simd import LANES
from m40llm.device.cpu.vectors import MAX_VECTORS, multiply_vectors
from m40llm.errors import KernelContractError

ROWS_AT_ONCE = 8 * TILE_ROWS  # a tile of 48 x 1024 floats stays in the L2

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class PackedMatrix:
    """A weight matrix in blocks, as it lies in the file; n_cols is a multiple of 32.

    memory  uint8[n_rows * row_bytes]  read-only, flat
    """

    type: GGMLType
    n_rows: int
    n_cols: int
    memory: NDArray[np.uint8]

    @property
    def kind(self) -> int:
        return KINDS[self.type]

    @property
    def row_bytes(self) -> int:
        return self.memory.size // self.n_rows

    @property
    def chunk_bytes(self) -> int:
        """Bytes of COLS_AT_ONCE weights."""
        return COLS_AT_ONCE // FORMATS[self.type].n_weights * FORMATS[self.type].n_bytes


@dataclass(frozen=True)
class DenseMatrix:
    """A weight matrix in float32[n_rows, n_cols], for widths that no vector of ours divides."""

    weights: Floats

    @property
    def n_rows(self) -> int:
        return int(self.weights.shape[0])

    @property
    def n_cols(self) -> int:
        return int(self.weights.shape[1])


@njit(cache=True, fastmath={"reassoc", "contract"}, **JIT)
def _multiply_dense(weights, x, keep, out):
    """As BLAS has it, but that a token's result does not depend on the others."""
    for r in range(out.shape[1]):
        for t in range(out.shape[0]):
            product = np.float32(0)
            for c in range(x.shape[1]):
                product += weights[r, c] * x[t, c]
            out[t, r] = product + out[t, r] if keep else product


@njit(parallel=True, cache=True, **JIT)
def _multiply_vector(kind, memory, row_bytes, x, keep, out):
    """out[r] = W[r] . x (+ out[r] if keep)   x float32[n_cols], out float32[n_rows]"""
    for r in prange(out.shape[0]):
        product = dot_row(kind, memory, r * row_bytes, x.shape[0] // UNIT, x)
        out[r] = product + out[r] if keep else product


@njit(**JIT)
def _store_sums(sums, first_row, keep, out):
    """out[t, first_row + r] (+)= sums[panel, r, lane], where token t is panel * 16 + lane."""
    n_tile_rows = min(ROWS_AT_ONCE, out.shape[1] - first_row)
    for t in range(out.shape[0]):
        s0 = t // LANES * ROWS_AT_ONCE * LANES + t % LANES
        for r in range(n_tile_rows):
            value = sums[s0 + r * LANES]
            out[t, first_row + r] = value + out[t, first_row + r] if keep else value


@njit(parallel=True, cache=True, **JIT)
def _multiply_matrix(kind, memory, row_bytes, chunk_bytes, x, keep, out):
    """out[t, r] = W[r] . x[t] (+ out[t, r] if keep), ROWS_AT_ONCE rows of W a thread at a time."""
    n_tokens, n_cols = x.shape
    n_rows, n_panels = out.shape[1], (n_tokens + LANES - 1) // LANES
    panels = np.empty(n_panels * LANES * n_cols, np.float32)
    for p in prange(n_panels):
        pack_panel(x, p * LANES, n_cols, panels, p * LANES * n_cols)
    for row_tile in prange((n_rows + ROWS_AT_ONCE - 1) // ROWS_AT_ONCE):
        first_row = row_tile * ROWS_AT_ONCE
        tile = np.empty(ROWS_AT_ONCE * min(n_cols, COLS_AT_ONCE), np.float32)
        sums = np.zeros(n_panels * ROWS_AT_ONCE * LANES, np.float32)
        for chunk in range((n_cols + COLS_AT_ONCE - 1) // COLS_AT_ONCE):
            first_col = chunk * COLS_AT_ONCE
            n_k = min(COLS_AT_ONCE, n_cols - first_col)
            at = first_row * row_bytes + chunk * chunk_bytes
            n_real = min(ROWS_AT_ONCE, n_rows - first_row)
            unpack_rows(kind, memory, row_bytes, at, n_real, ROWS_AT_ONCE, n_k // UNIT, tile)
            for p in range(n_panels):
                p0 = (p * n_cols + first_col) * LANES
                for r in range(0, ROWS_AT_ONCE, TILE_ROWS):
                    s0 = (p * ROWS_AT_ONCE + r) * LANES
                    multiply_tile(tile, r * n_k, n_k, 1, n_k, panels, p0, sums, s0)
        _store_sums(sums, first_row, keep, out)


@njit(cache=True, **JIT)
def _gather_rows(kind, memory, row_bytes, rows, n_cols, out):
    for i in range(rows.shape[0]):
        unpack_row(kind, memory, rows[i] * row_bytes, n_cols // UNIT, out, i * n_cols)


def matmul(w: PackedMatrix | DenseMatrix, x: Floats, out: Floats, *, accumulate: bool) -> None:
    """out (+)= x W^T.

    x       float32[n_tokens, n_cols]  C order
    out     float32[n_tokens, n_rows]  C order; must not overlap x
    """
    if x.shape[1] != w.n_cols or out.shape != (x.shape[0], w.n_rows):
        wanted = f"x[t, {w.n_cols}] and out[t, {w.n_rows}]"
        raise KernelContractError(f"matmul: expected {wanted}, got {x.shape} and {out.shape}")
    if isinstance(w, DenseMatrix):
        if x.shape[0] <= MAX_VECTORS:
            _multiply_dense(w.weights, x, accumulate, out)
        else:
            product = x @ w.weights.T
            np.add(out, product, out=out) if accumulate else np.copyto(out, product)
    elif x.shape[0] == 1:
        _multiply_vector(w.kind, w.memory, w.row_bytes, x[0], accumulate, out[0])
    elif x.shape[0] <= MAX_VECTORS:
        multiply_vectors(w.kind, w.memory, w.row_bytes, w.chunk_bytes, x, accumulate, out)
    else:
        _multiply_matrix(w.kind, w.memory, w.row_bytes, w.chunk_bytes, x, accumulate, out)


def gather_rows(w: PackedMatrix | DenseMatrix, rows: NDArray[np.int32], out: Floats) -> None:
    """out[i] = W[rows[i]]: float32[n, n_cols], dequantised."""
    if isinstance(w, DenseMatrix):
        np.take(w.weights, rows, axis=0, out=out)
    else:
        _gather_rows(w.kind, w.memory, w.row_bytes, rows, w.n_cols, out.reshape(-1))
