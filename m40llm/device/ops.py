"""Ops: what a device must be able to do. The transformer is written once, over this protocol.

Buffers are the device's own arrays (NumPy on `cpu`); all activations are float32, row-major, and
slicing a prefix of rows gives a view. No op allocates on the device or returns a value: results go
to `out`. Integers that say which row is what (`token_ids`, `seq`, `pos`, `rows`) are int32 buffers.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from gguf import GGMLQuantizationType as GGMLType
from numpy.typing import NDArray

from m40llm.progress import Progress

if TYPE_CHECKING:
    from m40llm.device.decoder import Decoder, ModelParts, OpsStep
    from m40llm.device.instructions import Instruction

Buffer = Any
Matrix = Any
RopeLayout = Literal["interleaved", "half"]


@dataclass(frozen=True)
class RopeTable:
    """Cosines and sines of every position, computed in FP64 on the host.

    cos, sin  float32[max_seq_len, rope_dim / 2]
    layout    which two elements of a head form pair d: (2d, 2d+1) or (d, d + rope_dim/2)
    """

    cos: Buffer
    sin: Buffer
    layout: RopeLayout


@dataclass(frozen=True)
class Q8Cache:
    """Keys or values in blocks of Q8_0: 32 elements of a head are quants times their scale.

    quants  int8[..., head_dim]
    scales  float16[..., head_dim / 32]
    """

    quants: Buffer
    scales: Buffer

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the elements."""
        return tuple(self.quants.shape)

    def __getitem__(self, at: Any) -> "Q8Cache":
        """Part of it, of whole heads."""
        return Q8Cache(self.quants[at], self.scales[at])


Cache = Any  # a Buffer of `Ops.cache_dtype`, or a Q8Cache


@dataclass(frozen=True)
class MatrixData:
    """A weight matrix as the file has it: data uint8[n_rows * row_bytes]."""

    ggml_type: GGMLType
    n_rows: int
    n_cols: int
    data: NDArray[np.uint8]


class Sizes(Protocol):
    """What tensors take of a device's memory, told before any is there."""

    def matrix_bytes(self, ggml_type: GGMLType, n_rows: int, n_cols: int) -> int:
        """Memory that such a matrix takes."""
        ...

    def table_bytes(self, ggml_type: GGMLType, n_rows: int, n_cols: int, *, is_tied: bool) -> int:
        """Memory that the embedding takes beside an output matrix, which may be the same."""
        ...


class ExpertOps(Protocol):
    """Products with experts that the device's own memory chooses, one launch or two each.

    Slot i = t * n_used + k is the k-th expert of row t, `ids` int32[n_slots] its number. x has a
    row a token, or one a slot. Weights are groups of `stack`, experts above one another.
    """

    def matmul(self, w: Matrix, x: Buffer, ids: Buffer, *, out: Buffer) -> None:
        """out[i] = W[ids[i]] x   out [n_slots, n_rows of an expert]"""
        ...

    def swiglu(self, gate_up: Matrix, x: Buffer, ids: Buffer, *, out: Buffer) -> None:
        """out[i] = silu(gate[ids[i]] x) * (up[ids[i]] x), where all gates stand above all ups"""
        ...

    def add_shares(self, x: Buffer, shares: Buffer, y: Buffer) -> None:
        """x[t] += the sum of shares[i] y[i] over its slots, in their order"""
        ...


class Ops(Sizes, Protocol):
    """One device's operations; `cpu` has its own, `cuda` and `emulator` share the kernels."""

    name: str
    cache_dtype: np.dtype[Any]
    # A forward of up to so many rows, each of another sequence, gives every row the bits that it
    # has alone; 0: a row's bits depend on how many rows there are, though not on what is in them.
    alike_rows: int

    @property
    def experts(self) -> ExpertOps | None:
        """None where reading a choice is no wait, or products are somebody else's."""
        ...

    def decoder(self, program: "Sequence[Instruction]", parts: "ModelParts") -> "Decoder | str":
        """What makes tokens of this program by itself; or why this device has no such thing."""
        ...

    def ops_decoder(self, step: "OpsStep") -> "Decoder | str":
        """What makes tokens by a step of these ops, recorded; or why this device cannot."""
        ...

    def free_bytes(self) -> int:
        """Memory that a model could still take."""
        ...

    def prepare(self, progress: Progress | None = None, *, has_q8_cache: bool = False) -> None:
        """Compiles what the ops need; `progress` is also told of what is compiled later on."""
        ...

    def recover(self) -> None:
        """Makes good what a failed op may have left half-done, so that the next forward is right.

        Buffers may hold anything; every op writes its `out` before anybody reads it.
        """
        ...

    def matrix(
        self, ggml_type: GGMLType, n_rows: int, n_cols: int, data: NDArray[np.uint8]
    ) -> Matrix:
        """A weight matrix from the file's bytes: uint8[n_rows * row_bytes]."""
        ...

    def stack(self, parts: Sequence[MatrixData]) -> tuple[tuple[Matrix, ...], tuple[Matrix, ...]]:
        """(groups of neighbouring parts above one another, each one matrix; each part), of equal
        n_cols. The parts lie in their groups. No groups where one product of this device is no
        faster than several."""
        ...

    def table(
        self, ggml_type: GGMLType, n_rows: int, n_cols: int, data: NDArray[np.uint8]
    ) -> Matrix:
        """The same, for `embedding` instead of `matmul`."""
        ...

    def empty(self, shape: tuple[int, ...], dtype: Any = np.float32) -> Buffer:
        """An uninitialised buffer."""
        ...

    def write(self, buffer: Buffer, values: NDArray[Any]) -> None:
        """Host -> device, same shape and type."""
        ...

    def read(self, buffer: Buffer) -> NDArray[Any]:
        """Device -> host: a copy, after all work that was enqueued."""
        ...

    def copy(self, source: Buffer, *, out: Buffer) -> None:
        """out = source, on the device; same shape and type, and no memory of both"""
        ...

    def beside(self) -> AbstractContextManager[None]:
        """Products inside may run beside those that follow, up to `join`: neither writes what the
        other one reads or writes."""
        ...

    def join(self) -> None:
        """What follows comes after all that was enqueued."""
        ...

    def embedding(self, table: Matrix, token_ids: Buffer, *, out: Buffer) -> None:
        """out[t] = table[token_ids[t]]   float32[t, n_embd]"""
        ...

    def rms_norm(self, x: Buffer, weight: Buffer, eps: float, *, out: Buffer) -> None:
        """out[t, c] = weight[c] x[t, c] / sqrt(mean(x[t]^2) + eps); out may be x. Of three
        dimensions, each x[t, head] is a row of its own."""
        ...

    def matmul(
        self,
        w: Matrix,
        x: Buffer,
        *,
        out: Buffer,
        bias: Buffer | None = None,
        accumulate: bool = False,
    ) -> None:
        """out (+)= x W^T (+ bias)   x [t, n_cols], out [t, n_rows]"""
        ...

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
        """Turn q [t, n_heads, head_dim] in place to pos[t]; append k, turned, and v to the cache.

        cache[seq[t], h, pos[t]] = k[t, h], and v likewise: k, v [t, n_kv_heads, head_dim], one
        layer's cache, which is rounded to its type. What is left in k is undefined.
        """
        ...

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
        """out[t, h] = softmax_p(score[p]) v[p] over p <= pos[t] (last `window`; 0: all)

        score[p] = scale q[t, h] . k[p], or softcap tanh(that / softcap); 0: no cap.
        The rows of one sequence stand together and in order; `single_rows` says that each is of
        another sequence, as in decode.
        """
        ...

    def swiglu(self, gate: Buffer, up: Buffer, *, out: Buffer) -> None:
        """out = silu(gate) up; out may be gate."""
        ...

    def geglu(self, gate: Buffer, up: Buffer, *, out: Buffer) -> None:
        """out = gelu_tanh(gate) up; out may be gate."""
        ...

    def scale(self, x: Buffer, factor: float) -> None:
        """x *= factor"""
        ...

    def softcap(self, x: Buffer, cap: float) -> None:
        """x = cap tanh(x / cap)"""
        ...

    def add_scaled(self, x: Buffer, y: Buffer, factor: float) -> None:
        """x += factor y"""
        ...

    def choose_experts(
        self, logits: Buffer, *, scale: float, is_normalised: bool, ids: Buffer, shares: Buffer
    ) -> None:
        """ids, shares [t * n_used] of the n_used largest of logits [t, n_experts], the largest
        first, of equal ones the first: shares = scale * softmax, normalised to the sum `scale`."""
        ...

    def take_rows(self, x: Buffer, rows: Buffer, *, out: Buffer) -> None:
        """out[i] = x[rows[i]]"""
        ...

    def add_rows(self, x: Buffer, rows: Buffer, shares: Buffer, y: Buffer) -> None:
        """x[rows[i]] += shares[i] y[i]; no row twice   shares [n], y [n, n_cols]"""
        ...
