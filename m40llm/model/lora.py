"""LoRA adapters (arXiv 2106.09685) from GGUF files, added while the model runs.

    W x  becomes  W x + B (A x)     A [rank, n_cols]; B [n_rows, rank], times alpha / rank * scale

The model's own weights stay as they are. Files are those of llama.cpp's convert_lora_to_gguf.py:
`general.type` is "adapter", and a matrix NAME of the model has NAME.lora_a and NAME.lora_b.
"""

from dataclasses import dataclass

import numpy as np
from gguf import GGMLQuantizationType as GGMLType
from numpy.typing import NDArray

from m40llm.device.ops import Buffer, Matrix, Ops
from m40llm.errors import ModelFileError, UnsupportedModelError
from m40llm.gguf import GGUFFile
from m40llm.gguf.blocks import dequantize
from m40llm.model.arch import Architecture, RowRange, rows_of
from m40llm.model.hparams import HParams

_A, _B = ".lora_a", ".lora_b"
_ALORA = "adapter.alora.invocation_tokens"
_RANK_UNIT = 4  # columns of an F32 matrix come in multiples of it
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class _LowRank:
    """Both on the device, the rank filled up with zeros."""

    a: Matrix  # [rank, n_cols]
    b: Matrix  # [n_rows, rank]
    between: Buffer  # [max_tokens, rank]


class Adapter:
    """What an adapter adds to the matrices of a model on its device."""

    def __init__(self, ops: Ops, of: dict[str, _LowRank]) -> None:
        self._ops, self._of = ops, of

    def add(self, name: str, x: Buffer, out: Buffer) -> None:
        """out += B (A x), if the adapter has the matrix: "blk.0.attn_q", ...   [t, n_rows]"""
        if low := self._of.get(name):
            between = low.between[: x.shape[0]]
            self._ops.matmul(low.a, x, out=between)
            self._ops.matmul(low.b, between, out=out, accumulate=True)


def load_adapter(
    ops: Ops, file: GGUFFile, arch: Architecture, hp: HParams, *, max_tokens: int, scale: float = 1
) -> Adapter:
    """The adapter of a file for this model, its effect multiplied by `scale`.

    Raises ModelFileError for a file that is none or does not fit the model; UnsupportedModelError
    for one of another architecture, or for matrices that no adapter changes here.
    """
    alpha = _checked(file, arch)
    places = _places(arch, hp)
    known = {rows.tensor for rows, _ in places.values()}
    for tensor in file.tensors:
        base = tensor.removesuffix(_A).removesuffix(_B)
        if base == tensor or base not in known:
            raise UnsupportedModelError(
                f"tensor {tensor}: adapters may change the matrices of attention, feed-forward "
                "and output alone"
            )
    of = {}
    for name, (rows, n_cols) in places.items():
        if f"{rows.tensor}{_A}" in file.tensors or f"{rows.tensor}{_B}" in file.tensors:
            a, b = _pair(file, rows, n_cols, n_rows=_n_rows(places, rows.tensor))
            factor = scale * (alpha / len(a) if alpha else 1.0)
            b = b[rows.first : rows.first + rows.n_rows] * np.float32(factor)
            of[name] = _on_device(ops, a, b, max_tokens)
    if not of:
        raise ModelFileError("adapter: it has no tensors")
    return Adapter(ops, of)


def _checked(file: GGUFFile, arch: Architecture) -> float:
    """Alpha of an adapter for this architecture; 0: none."""
    metadata = file.metadata
    kind, what = metadata.get_str("general.type", "model"), "adapter.type"
    if kind != "adapter":
        metadata.refuse("general.type", "'adapter'", repr(kind))
    if (found := metadata.get_str(what)) != "lora":
        metadata.refuse(what, "'lora'", repr(found), UnsupportedModelError)
    if _ALORA in metadata:
        metadata.refuse(_ALORA, "none: this one acts in parts of a text", "", UnsupportedModelError)
    name = metadata.get_str("general.architecture")
    if name != arch.name:
        wanted = f"{arch.name!r}, the model's"
        metadata.refuse("general.architecture", wanted, repr(name), UnsupportedModelError)
    return metadata.get_float("adapter.lora.alpha", 0.0)


def _places(arch: Architecture, hp: HParams) -> dict[str, tuple[RowRange, int]]:
    """Each matrix that may change: where its rows are in the file's names, and its columns."""
    found = {"output": (RowRange("output.weight", 0, hp.vocab_size), hp.n_embd)}
    of_layer = {part: (rows, hp.n_embd) for part, rows in rows_of(arch, hp).items()}
    of_layer["attn_output"] = RowRange("attn_output.weight", 0, hp.n_embd), hp.q_dim
    of_layer["ffn_down"] = RowRange("ffn_down.weight", 0, hp.n_embd), hp.n_ff
    if hp.n_experts:
        of_layer = {part: of for part, of in of_layer.items() if not part.startswith("ffn")}
    for layer in range(hp.n_layers):
        for part, (rows, n_cols) in of_layer.items():
            at = f"blk.{layer}."
            found[at + part] = RowRange(at + rows.tensor, rows.first, rows.n_rows), n_cols
    return found


def _n_rows(places: dict[str, tuple[RowRange, int]], tensor: str) -> int:
    return sum(rows.n_rows for rows, _ in places.values() if rows.tensor == tensor)


def _pair(file: GGUFFile, rows: RowRange, n_cols: int, n_rows: int) -> tuple[Floats, Floats]:
    """(A [rank, n_cols], B [n_rows, rank]) of a tensor of the model."""
    found = []
    for name in (rows.tensor + _A, rows.tensor + _B):
        if name not in file.tensors:
            raise ModelFileError(f"tensor {name}: missing, though its other half is there")
        info = file.tensors[name]
        if len(info.shape) != 2:
            raise ModelFileError(f"tensor {name}: expected a matrix, got {list(info.shape)}")
        found.append(dequantize(info.type, file.tensor_bytes(name)).reshape(info.shape))
    a, b = found
    rank = len(a)
    for name, got, wanted in ((_A, a.shape, (rank, n_cols)), (_B, b.shape, (n_rows, rank))):
        if got != wanted:
            raise ModelFileError(
                f"tensor {rows.tensor}{name}: expected shape {list(wanted)}, got {list(got)}: "
                "the adapter is for a model of another size"
            )
    return a, b


def _on_device(ops: Ops, a: Floats, b: Floats, max_tokens: int) -> _LowRank:
    missing = -len(a) % _RANK_UNIT
    a = np.pad(a, ((0, missing), (0, 0)))
    b = np.pad(b, ((0, 0), (0, missing)))
    return _LowRank(_matrix(ops, a), _matrix(ops, b), ops.empty((max_tokens, len(a))))


def _matrix(ops: Ops, values: Floats) -> Matrix:
    n_rows, n_cols = values.shape
    data = np.ascontiguousarray(values, np.float32).reshape(-1).view(np.uint8)
    data.flags.writeable = False  # as a file's mapping, for which the products are compiled
    return ops.matrix(GGMLType.F32, n_rows, n_cols, data)
