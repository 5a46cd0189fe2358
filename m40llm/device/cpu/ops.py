"""The ops of the `cpu` device: FP32 throughout, weights read in the file's blocks, the cache FP32
or in Q8_0."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as GGMLType
from numpy.typing import NDArray

from m40llm.device.cpu import elementwise, q8_cache
from m40llm.device.cpu.attention import attention
from m40llm.device.cpu.experts import choose_experts
from m40llm.device.cpu.formats import FORMATS, UNIT
from m40llm.device.cpu.matmul import DenseMatrix, PackedMatrix, gather_rows, matmul
from m40llm.device.cpu.prepare import prepare
from m40llm.device.cpu.vectors import MAX_VECTORS
from m40llm.device.decoder import ModelParts, OpsStep
from m40llm.device.host_memory import available_bytes, lazy_bytes
from m40llm.device.instructions import Instruction
from m40llm.device.ops import Cache, MatrixData, Q8Cache, RopeTable
from m40llm.gguf.blocks import dequantize, row_bytes
from m40llm.progress import Progress

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]
Matrix = PackedMatrix | DenseMatrix
_LINE = 64  # bytes of a cache line
_NO_DECODER = "no decoder runs there; cuda and emulator have one"


class CpuOps:
    """Implements `device.ops.Ops` with NumPy, its BLAS and Numba's CPU JIT. Buffers are arrays."""

    name = "cpu"
    cache_dtype = np.dtype(np.float32)
    alike_rows = MAX_VECTORS
    experts = None

    def decoder(self, program: Sequence[Instruction], parts: ModelParts) -> str:
        return _NO_DECODER

    def ops_decoder(self, step: OpsStep) -> str:
        return _NO_DECODER

    def free_bytes(self) -> int:
        return available_bytes()

    def prepare(self, progress: Progress | None = None, *, has_q8_cache: bool = False) -> None:
        prepare(progress, has_q8_cache=has_q8_cache)

    def beside(self) -> AbstractContextManager[None]:
        return nullcontext()

    def join(self) -> None:
        """There is one order."""

    def recover(self) -> None:
        """No op keeps a state of its own."""

    def matrix_bytes(self, ggml_type: GGMLType, n_rows: int, n_cols: int) -> int:
        """What formats.py knows is read from the file's mapping; the rest becomes float32."""
        is_packed = _is_packed(ggml_type, n_cols)
        return n_rows * (row_bytes(ggml_type, n_cols) if is_packed else 4 * n_cols)

    def table_bytes(self, ggml_type: GGMLType, n_rows: int, n_cols: int, *, is_tied: bool) -> int:
        """Nothing where the output matrix is the same: both read the same bytes."""
        return 0 if is_tied else self.matrix_bytes(ggml_type, n_rows, n_cols)

    def matrix(
        self, ggml_type: GGMLType, n_rows: int, n_cols: int, data: NDArray[np.uint8]
    ) -> Matrix:
        if _is_packed(ggml_type, n_cols):
            return PackedMatrix(ggml_type, n_rows, n_cols, data)
        weights = dequantize(ggml_type, data.reshape(n_rows, -1))
        if n_cols % UNIT:
            return DenseMatrix(weights)
        memory = weights.reshape(-1).view(np.uint8)
        memory.flags.writeable = False  # as the mapping: one type, one compiled product
        return PackedMatrix(GGMLType.F32, n_rows, n_cols, memory)

    def stack(self, parts: Sequence[MatrixData]) -> tuple[tuple[()], tuple[Matrix, ...]]:
        """No groups: each product reads the file's mapping, row after row, as it is."""
        return (), tuple(self.matrix(p.ggml_type, p.n_rows, p.n_cols, p.data) for p in parts)

    def table(
        self, ggml_type: GGMLType, n_rows: int, n_cols: int, data: NDArray[np.uint8]
    ) -> Matrix:
        return self.matrix(ggml_type, n_rows, n_cols, data)

    def empty(self, shape: tuple[int, ...], dtype: Any = np.float32) -> NDArray[Any]:
        """Aligned to cache lines, so that no vector of 32 bytes lies in two of them; a large one
        takes memory as it is filled."""
        n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        memory = lazy_bytes(n_bytes + _LINE)
        first = -memory.ctypes.data % _LINE
        return np.asarray(memory[first : first + n_bytes].view(dtype).reshape(shape))

    def write(self, buffer: NDArray[Any], values: NDArray[Any]) -> None:
        buffer[...] = values

    def read(self, buffer: NDArray[Any]) -> NDArray[Any]:
        return buffer.copy()

    def copy(self, source: NDArray[Any], *, out: NDArray[Any]) -> None:
        out[...] = source

    def embedding(self, table: Matrix, token_ids: Ints, *, out: Floats) -> None:
        gather_rows(table, token_ids, out)

    def rms_norm(self, x: Floats, weight: Floats, eps: float, *, out: Floats) -> None:
        width = weight.shape[0]
        elementwise.rms_norm(x.reshape(-1, width), weight, eps, out.reshape(-1, width))

    def matmul(
        self,
        w: Matrix,
        x: Floats,
        *,
        out: Floats,
        bias: Floats | None = None,
        accumulate: bool = False,
    ) -> None:
        matmul(w, x, out, accumulate=accumulate)
        if bias is not None:
            out += bias

    def rope_append(
        self,
        q: Floats,
        k: Floats,
        v: Floats,
        k_cache: Cache,
        v_cache: Cache,
        seq: Ints,
        pos: Ints,
        table: RopeTable,
    ) -> None:
        stride, partner = (2, 1) if table.layout == "interleaved" else (1, table.cos.shape[1])
        elementwise.rotate(q, pos, table.cos, table.sin, stride, partner)
        elementwise.rotate(k, pos, table.cos, table.sin, stride, partner)
        if isinstance(k_cache, Q8Cache):
            q8_cache.append(k, k_cache, seq, pos)
            q8_cache.append(v, v_cache, seq, pos)
        else:
            elementwise.append(k, v, k_cache, v_cache, seq, pos)

    def attention(
        self,
        q: Floats,
        k_cache: Cache,
        v_cache: Cache,
        seq: Ints,
        pos: Ints,
        *,
        scale: float,
        window: int,
        softcap: float,
        single_rows: bool,
        out: Floats,
    ) -> None:
        attend = q8_cache.attention if isinstance(k_cache, Q8Cache) else attention
        attend(q, k_cache, v_cache, seq, pos, scale, out, window=window, softcap=softcap)

    def swiglu(self, gate: Floats, up: Floats, *, out: Floats) -> None:
        elementwise.swiglu(gate, up, out)

    def geglu(self, gate: Floats, up: Floats, *, out: Floats) -> None:
        elementwise.geglu(gate, up, out)

    def scale(self, x: Floats, factor: float) -> None:
        x *= np.float32(factor)

    def softcap(self, x: Floats, cap: float) -> None:
        x /= np.float32(cap)
        np.tanh(x, out=x)
        x *= np.float32(cap)

    def add_scaled(self, x: Floats, y: Floats, factor: float) -> None:
        x += y if factor == 1.0 else np.float32(factor) * y

    def choose_experts(
        self, logits: Floats, *, scale: float, is_normalised: bool, ids: Ints, shares: Floats
    ) -> None:
        choose_experts(logits, scale, is_normalised, ids, shares)

    def take_rows(self, x: Floats, rows: Ints, *, out: Floats) -> None:
        np.take(x, rows, axis=0, out=out)

    def add_rows(self, x: Floats, rows: Ints, shares: Floats, y: Floats) -> None:
        x[rows] += shares[:, None] * y


def _is_packed(ggml_type: GGMLType, n_cols: int) -> bool:
    return ggml_type in FORMATS and n_cols % UNIT == 0
