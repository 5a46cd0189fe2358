"""ReferenceOps: the Ops protocol over reference/, so that the transformer itself has an oracle.

The same layers run in FP64 throughout, cache included unless it is Q8_0, on weights dequantised by
`gguf.quants`.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as GGMLType
from numpy.typing import NDArray

from m40llm import reference
from m40llm.device.ops import Cache, MatrixData, Q8Cache, RopeTable
from m40llm.gguf.blocks import dequantize

Array = NDArray[Any]


class ReferenceOps:
    """Every op is the reference function of its name, stored into `out`."""

    name = "reference"
    cache_dtype = np.dtype(np.float64)
    alike_rows = 0
    experts = None

    def decoder(self, program: Any, parts: Any) -> str:
        return "the reference has none"

    def ops_decoder(self, step: Any) -> str:
        return "the reference has none"

    def free_bytes(self) -> int:
        return 1 << 40

    def prepare(self, progress: Any = None, *, has_q8_cache: bool = False) -> None:
        """Nothing to compile."""

    def beside(self) -> AbstractContextManager[None]:
        return nullcontext()

    def join(self) -> None:
        """There is one order."""

    def recover(self) -> None:
        """No op keeps a state of its own."""

    def matrix_bytes(self, ggml_type: GGMLType, n_rows: int, n_cols: int) -> int:
        return 4 * n_rows * n_cols

    def table_bytes(self, ggml_type: GGMLType, n_rows: int, n_cols: int, *, is_tied: bool) -> int:
        return 4 * n_rows * n_cols

    def matrix(self, ggml_type: GGMLType, n_rows: int, n_cols: int, data: Array) -> Array:
        return dequantize(ggml_type, data.reshape(n_rows, -1))

    def stack(self, parts: Sequence[MatrixData]) -> tuple[tuple[()], tuple[Array, ...]]:
        return (), tuple(self.matrix(p.ggml_type, p.n_rows, p.n_cols, p.data) for p in parts)

    def table(self, ggml_type: GGMLType, n_rows: int, n_cols: int, data: Array) -> Array:
        return self.matrix(ggml_type, n_rows, n_cols, data)

    def empty(self, shape: tuple[int, ...], dtype: Any = np.float32) -> Array:
        is_float = np.issubdtype(np.dtype(dtype), np.floating)
        return np.full(shape, np.nan, np.float64) if is_float else np.zeros(shape, dtype)

    def write(self, buffer: Array, values: Array) -> None:
        buffer[...] = values

    def copy(self, source: Array, *, out: Array) -> None:
        out[...] = source

    def read(self, buffer: Array) -> Array:
        return buffer.copy()

    def embedding(self, table: Array, token_ids: Array, *, out: Array) -> None:
        out[...] = reference.embedding(table, token_ids)

    def rms_norm(self, x: Array, weight: Array, eps: float, *, out: Array) -> None:
        out[...] = reference.rms_norm(x, weight, eps)

    def matmul(
        self,
        w: Array,
        x: Array,
        *,
        out: Array,
        bias: Array | None = None,
        accumulate: bool = False,
    ) -> None:
        product = reference.matmul(w, x, bias)
        out[...] = out + product if accumulate else product

    def rope_append(
        self,
        q: Array,
        k: Array,
        v: Array,
        k_cache: Cache,
        v_cache: Cache,
        seq: Array,
        pos: Array,
        table: RopeTable,
    ) -> None:
        self.rope(q, pos, table)
        self.rope(k, pos, table)
        for x, cache in ((k, k_cache), (v, v_cache)):
            if isinstance(cache, Q8Cache):
                cache.quants[...], cache.scales[...] = reference.append_q8(
                    x, cache.quants, cache.scales, seq, pos
                )
            else:
                cache[...] = reference.append(x, cache, seq, pos)

    def rope(self, x: Array, pos: Array, table: RopeTable) -> None:
        x[...] = reference.rope(x, pos, table.cos, table.sin, table.layout)

    def attention(
        self,
        q: Array,
        k_cache: Cache,
        v_cache: Cache,
        seq: Array,
        pos: Array,
        *,
        scale: float,
        window: int,
        softcap: float,
        single_rows: bool,
        out: Array,
    ) -> None:
        k, v = (values_of(cache) for cache in (k_cache, v_cache))
        out[...] = reference.attention(q, k, v, seq, pos, scale, window, softcap)

    def swiglu(self, gate: Array, up: Array, *, out: Array) -> None:
        out[...] = reference.swiglu(gate, up)

    def geglu(self, gate: Array, up: Array, *, out: Array) -> None:
        out[...] = reference.geglu(gate, up)

    def scale(self, x: Array, factor: float) -> None:
        x[...] = reference.scale(x, factor)

    def softcap(self, x: Array, cap: float) -> None:
        x[...] = reference.softcap(x, cap)

    def add_scaled(self, x: Array, y: Array, factor: float) -> None:
        x[...] = reference.add_scaled(x, y, factor)

    def choose_experts(
        self, logits: Array, *, scale: float, is_normalised: bool, ids: Array, shares: Array
    ) -> None:
        n_used = ids.size // len(logits)
        chosen = reference.choose_experts(logits, n_used, scale=scale, is_normalised=is_normalised)
        ids[:], shares[:] = (of_rows.reshape(-1) for of_rows in chosen)

    def take_rows(self, x: Array, rows: Array, *, out: Array) -> None:
        out[...] = x[rows]

    def add_rows(self, x: Array, rows: Array, shares: Array, y: Array) -> None:
        x[...] = reference.add_rows(x, rows, shares, y)


def values_of(cache: Cache) -> Array:
    """What a cache of this device stands for."""
    if isinstance(cache, Q8Cache):
        return reference.dequantise_q8(cache.quants, cache.scales)
    return np.asarray(cache)
