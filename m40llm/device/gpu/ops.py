"""The ops of a GPU, real or emulated: each is one launch of the kernel of its name, or two."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
from gguf import GGMLQuantizationType as GGMLType
from numpy.typing import NDArray

from m40llm.device.decoder import ModelParts, OpsStep
from m40llm.device.gpu import held
from m40llm.device.gpu.cache_kernels import in_type
from m40llm.device.gpu.card import Card
from m40llm.device.gpu.experts import GpuExperts
from m40llm.device.gpu.kept import converted, planes_of, stacked
from m40llm.device.gpu.launches import Launches
from m40llm.device.gpu.tuned import Tuned
from m40llm.device.instructions import Instruction
from m40llm.device.ops import Cache, MatrixData, RopeTable
from m40llm.kernels.attention_common import TINY_HEAD_DIMS
from m40llm.kernels.attention_decode import partial_shape, split_count
from m40llm.kernels.gemm import MAX_TILES, Workspace, workspace_floats
from m40llm.kernels.gemv import MAX_TOKENS
from m40llm.kernels.planes import Planes
from m40llm.progress import Progress

if TYPE_CHECKING:
    from m40llm.device.gpu.decoder import CardDecoder

Buffer = Any
Bytes = NDArray[np.uint8]
_NOT_BESIDE_PRODUCTS: Final = "its products would not be cuBLAS's"


@dataclass(frozen=True)
class Table:
    """The embedding: the file's own blocks, uint8[n_rows, row_bytes]."""

    type: GGMLType
    rows: Buffer


class Products(Protocol):
    """Another maker of matrix products than our kernels: cuBLAS."""

    def matmul(
        self, w: Planes, x: Buffer, out: Buffer, bias: Buffer | None, accumulate: bool
    ) -> None:
        """out (+)= x W^T (+ bias), enqueued in the card's order."""
        ...


class GpuOps:
    """Implements `device.ops.Ops` on a card. Cache and weights FP16 or quantised, the rest FP32.

    `products` makes the matrix products in place of gemv and gemm; `launches` may be others than
    ours.
    """

    cache_dtype = np.dtype(np.float16)
    alike_rows = 0

    def __init__(self, card: Card, products: Products | None = None) -> None:
        self.card, self.products, self.launches = card, products, Launches()
        self.name = card.name
        self.experts = GpuExperts(card) if products is None else None
        self._workspaces: dict[tuple[int, ...], tuple[Buffer, Buffer]] = {}
        self._shared_sums: dict[bool, Workspace] = {}  # of launches beside others, and of the rest
        self._is_beside = False

    @cached_property
    def tuned(self) -> Tuned:
        """Tiles that were measured on this card."""
        return Tuned(self.card.about)

    def decoder(self, program: Sequence[Instruction], parts: ModelParts) -> "CardDecoder | str":
        from m40llm.device.gpu.program_decoder import ProgramDecoder, why_not

        if self.products is not None:
            return _NOT_BESIDE_PRODUCTS
        return why_not(program, parts) or ProgramDecoder(self.card, program, parts)

    def ops_decoder(self, step: OpsStep) -> "CardDecoder | str":
        from m40llm.device.gpu.ops_decoder import OpsDecoder, why_no_ops

        if self.products is not None:
            return _NOT_BESIDE_PRODUCTS
        return why_no_ops(step) or OpsDecoder(self.card, step)

    def free_bytes(self) -> int:
        """For a model: less what its first matrix products will take."""
        is_taken = self.products is not None or bool(self._shared_sums)
        shared = 0 if is_taken else 2 * 4 * workspace_floats(self.card.n_sms)
        return max(self.card.free_bytes() - shared, 0)

    def recover(self) -> None:
        """Counts again from zero what a launch that was broken off had counted."""
        counters = [arrived for _, arrived in self._workspaces.values()]
        counters += [workspace.arrived for workspace in self._shared_sums.values()]
        for arrived in counters:
            self.write(arrived, np.zeros(arrived.shape, np.int32))

    def prepare(self, progress: Progress | None = None, *, has_q8_cache: bool = False) -> None:
        """Kernels are compiled at their first launch, and `progress` is told of each then."""
        self.card.tell_compiling(progress)

    def matrix_bytes(self, ggml_type: GGMLType, n_rows: int, n_cols: int) -> int:
        return held.matrix_bytes(ggml_type, n_rows, n_cols)

    def table_bytes(self, ggml_type: GGMLType, n_rows: int, n_cols: int, *, is_tied: bool) -> int:
        return held.table_bytes(ggml_type, n_rows, n_cols, is_tied=is_tied)

    def matrix(self, ggml_type: GGMLType, n_rows: int, n_cols: int, data: Bytes) -> Planes:
        return self.upload(planes_of(MatrixData(ggml_type, n_rows, n_cols, data)))

    def stack(self, parts: Sequence[MatrixData]) -> tuple[tuple[Planes, ...], tuple[Planes, ...]]:
        """A group for each run of parts that the card holds in one type."""
        wholes: list[Planes] = []
        each: list[Planes] = []
        for _, run in groupby(map(planes_of, parts), key=lambda planes: planes.type):
            group = list(run)
            wholes.append(self.upload(stacked(group)))
            ends = np.cumsum([0, *(planes.n_rows for planes in group)])
            each += [wholes[-1][slice(a, b)] for a, b in pairwise(ends)]
        return tuple(wholes), tuple(each)

    def upload(self, planes: Planes) -> Planes:
        """Planes of the host, on the card."""
        upload = self.card.upload
        return Planes(
            planes.type,
            planes.n_cols,
            upload(planes.quants),
            None if planes.highs is None else upload(planes.highs),
            None if planes.scales is None else upload(planes.scales),
        )

    def table(self, ggml_type: GGMLType, n_rows: int, n_cols: int, data: Bytes) -> Table:
        kept = held.held_table(ggml_type)
        rows = converted(ggml_type, kept, n_rows, data).reshape(n_rows, -1)
        return Table(kept, self.card.upload(rows))

    def empty(self, shape: tuple[int, ...], dtype: Any = np.float32) -> Buffer:
        return self.card.alloc(shape, np.dtype(dtype))

    def write(self, buffer: Buffer, values: NDArray[Any]) -> None:
        self.card.write(buffer, np.ascontiguousarray(values, buffer.dtype))

    def read(self, buffer: Buffer) -> NDArray[Any]:
        return self.card.read(buffer)

    def copy(self, source: Buffer, *, out: Buffer) -> None:
        self.card.copy(source, out)

    def embedding(self, table: Table, token_ids: Buffer, *, out: Buffer) -> None:
        self.launches.embedding(table.rows, table.type, token_ids, out, stream=self.card)

    def rms_norm(self, x: Buffer, weight: Buffer, eps: float, *, out: Buffer) -> None:
        launches = self.launches
        norm = launches.rms_norm if len(x.shape) == 2 else launches.rms_norm_heads
        norm(x, weight, eps, out, stream=self.card)

    def matmul(
        self,
        w: Planes,
        x: Buffer,
        *,
        out: Buffer,
        bias: Buffer | None = None,
        accumulate: bool = False,
    ) -> None:
        if self.products is not None:
            self.products.matmul(w, x, out, bias, accumulate)
            return
        if x.shape[0] <= MAX_TOKENS:
            self.launches.gemv(w, x, out, bias=bias, accumulate=accumulate, stream=self.card)
            return
        tuned = self.tuned.choice(w.type, w.n_rows, w.n_cols, x.shape[0])
        tile, n_splits = (None, None) if tuned is None else tuned
        self.launches.gemm(
            w, x, out, bias=bias, accumulate=accumulate, tile=tile, n_splits=n_splits,
            workspace=self.gemm_workspace(), stream=self.card,
        )  # fmt: skip

    def gemm_workspace(self) -> Workspace:
        """What blocks that share a tile need, made at the first call."""
        if self._is_beside not in self._shared_sums:
            sums = self.empty((workspace_floats(self.card.n_sms),))
            arrived = self.empty((MAX_TILES,), np.int32)
            self.write(arrived, np.zeros(MAX_TILES, np.int32))
            self._shared_sums[self._is_beside] = Workspace(sums, arrived)
        return self._shared_sums[self._is_beside]

    @contextmanager
    def beside(self) -> Iterator[None]:
        self._is_beside = True
        try:
            with self.card.beside():
                yield
        finally:
            self._is_beside = False

    def join(self) -> None:
        self.card.join()

    def rope_append(
        self,
        q: Buffer,
        k: Buffer,
        v: Buffer,
        k_cache: Cache,
        v_cache: Cache,
        seq: Buffer,
        pos: Buffer,
        table: RopeTable,
    ) -> None:
        caches, kernels = in_type(k_cache, v_cache, self.launches)
        turn = table.cos, table.sin, table.layout
        kernels.append(q, k, v, *caches, seq, pos, *turn, stream=self.card)

    def attention(
        self,
        q: Buffer,
        k_cache: Cache,
        v_cache: Cache,
        seq: Buffer,
        pos: Buffer,
        *,
        scale: float,
        window: int,
        softcap: float,
        single_rows: bool,
        out: Buffer,
    ) -> None:
        caches, kernels = in_type(k_cache, v_cache, self.launches)
        args = q, *caches, seq, pos
        how: Any = {"scale": scale, "window": window, "softcap": softcap, "stream": self.card}
        if single_rows or q.shape[2] in TINY_HEAD_DIMS:  # which prefill's tiles are too wide for
            partial, arrived = self._split_workspace(q.shape, k_cache.shape)
            kernels.decode(*args, partial, arrived, out, **how)
        else:
            kernels.prefill(*args, out, **how)

    def _split_workspace(
        self, q_shape: tuple[int, ...], cache_shape: tuple[int, ...]
    ) -> tuple[Buffer, Buffer]:
        """(partial, arrived) of attention_decode, made at the first batch of this many rows."""
        n_tokens, n_heads, head_dim = q_shape
        _, n_kv_heads, max_seq_len, _ = cache_shape
        key = (*q_shape, n_kv_heads, max_seq_len)
        if key not in self._workspaces:
            n_splits = split_count(n_tokens, n_heads, n_kv_heads, max_seq_len, self.card.n_sms)
            partial = self.empty(partial_shape(n_tokens, n_heads, head_dim, n_splits))
            arrived = self.empty((n_tokens, n_heads), np.int32)
            self.write(arrived, np.zeros((n_tokens, n_heads), np.int32))
            self._workspaces[key] = partial, arrived
        return self._workspaces[key]

    def swiglu(self, gate: Buffer, up: Buffer, *, out: Buffer) -> None:
        self.launches.swiglu(gate, up, out, stream=self.card)

    def geglu(self, gate: Buffer, up: Buffer, *, out: Buffer) -> None:
        self.launches.geglu(gate, up, out, stream=self.card)

    def scale(self, x: Buffer, factor: float) -> None:
        self.launches.scale(x, factor, stream=self.card)

    def softcap(self, x: Buffer, cap: float) -> None:
        self.launches.softcap(x, cap, stream=self.card)

    def add_scaled(self, x: Buffer, y: Buffer, factor: float) -> None:
        self.launches.add_scaled(x, y, factor, stream=self.card)

    def choose_experts(
        self, logits: Buffer, *, scale: float, is_normalised: bool, ids: Buffer, shares: Buffer
    ) -> None:
        how: Any = {"scale": scale, "is_normalised": is_normalised}
        self.launches.choose_experts(logits, ids, shares, stream=self.card, **how)

    def take_rows(self, x: Buffer, rows: Buffer, *, out: Buffer) -> None:
        self.launches.take_rows(x, rows, out, stream=self.card)

    def add_rows(self, x: Buffer, rows: Buffer, shares: Buffer, y: Buffer) -> None:
        self.launches.add_rows(x, rows, shares, y, stream=self.card)
