"""LoRA adapters (arXiv 2106.09685) from GGUF files, added while the model runs.

    W x  becomes  W x + B (A x)     A [rank, n_cols]; B [n_rows, rank], times alpha / rank * scale

The model's own weights stay as they are. Files are those of llama.cpp's convert_lora_to_gguf.py:
`general.type` is "adapter", and a matrix NAME of the model has NAME.lora_a and NAME.lora_b.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from gguf import GGMLQuantizationType as GGMLType
from numpy.typing import NDArray

from m40llm.device.ops import Buffer, Matrix, Ops
from m40llm.errors import DeviceError, ModelFileError, UnsupportedModelError
from m40llm.gguf import GGUFFile
from m40llm.gguf.blocks import dequantize
from m40llm.model.arch import Architecture, RowRange, rows_of
from m40llm.model.hparams import HParams

_A, _B = ".lora_a", ".lora_b"
_ALORA = "adapter.alora.invocation_tokens"
_RANK_UNIT = 4  # columns of an F32 matrix come in multiples of it
_TYPE = GGMLType.F32
Floats = NDArray[np.float32]
OpsOf = Callable[[str], Ops]


@dataclass(frozen=True)
class _LowRank:
    """Both on the device of the matrix that they are added to, the rank filled up with zeros."""

    ops: Ops
    a: Matrix  # [rank, n_cols]
    b: Matrix  # [n_rows, rank]
    between: Buffer  # [max_tokens, rank]


class Adapter:
    """What an adapter adds to the matrices of a model on its device, or devices."""

    def __init__(self, of: dict[str, _LowRank]) -> None:
        self._of = of

    def add(self, name: str, x: Buffer, out: Buffer) -> None:
        """out += B (A x), if the adapter has the matrix: "blk.0.attn_q", ...   [t, n_rows]"""
        if low := self._of.get(name):
            between = low.between[: x.shape[0]]
            low.ops.matmul(low.a, x, out=between)
            low.ops.matmul(low.b, between, out=out, accumulate=True)


def load_adapter(
    ops_of: OpsOf,
    file: GGUFFile,
    arch: Architecture,
    hp: HParams,
    *,
    max_tokens: int,
    scale: float = 1,
) -> Adapter:
    """The adapter of a file for this model, its effect multiplied by `scale`.

    ops_of  whose device a matrix is on: "blk.0.attn_q", "output"

    Raises ModelFileError for a file that is none or does not fit the model; UnsupportedModelError
    for one of another architecture, or for matrices that no adapter changes here; DeviceError
    before anything is uploaded where there is no room for it.
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
    changed = {
        name: place
        for name, place in places.items()
        if {f"{place[0].tensor}{_A}", f"{place[0].tensor}{_B}"} & file.tensors.keys()
    }
    ranks = {
        name: _rank(file, rows, n_cols, _n_rows(places, rows.tensor))
        for name, (rows, n_cols) in changed.items()
    }
    _check_room(ops_of, changed, ranks, max_tokens)
    of = {}
    for name, (rows, _) in changed.items():
        a, b = (_values(file, f"{rows.tensor}{half}") for half in (_A, _B))
        factor = scale * (alpha / len(a) if alpha else 1.0)
        b = b[rows.first : rows.first + rows.n_rows] * np.float32(factor)
        of[name] = _on_device(ops_of(name), a, b, max_tokens)
    if not of:
        raise ModelFileError("adapter: it has no tensors")
    return Adapter(of)


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


def _rank(file: GGUFFile, rows: RowRange, n_cols: int, n_rows: int) -> int:
    """Of A [rank, n_cols] and B [n_rows, rank] of a tensor of the model, both there."""
    for name in (rows.tensor + _A, rows.tensor + _B):
        if name not in file.tensors:
            raise ModelFileError(f"tensor {name}: missing, though its other half is there")
        if len(shape := file.tensors[name].shape) != 2:
            raise ModelFileError(f"tensor {name}: expected a matrix, got {list(shape)}")
    a, b = (file.tensors[rows.tensor + half].shape for half in (_A, _B))
    rank = a[0]
    for half, got, wanted in ((_A, a, (rank, n_cols)), (_B, b, (n_rows, rank))):
        if got != wanted:
            raise ModelFileError(
                f"tensor {rows.tensor}{half}: expected shape {list(wanted)}, got {list(got)}: "
                "the adapter is for a model of another size"
            )
    return rank


def _check_room(
    ops_of: OpsOf,
    changed: dict[str, tuple[RowRange, int]],
    ranks: dict[str, int],
    max_tokens: int,
) -> None:
    """DeviceError where a device has not enough memory left."""
    needs: dict[Ops, int] = {}
    for name, (rows, n_cols) in changed.items():
        ops, rank = ops_of(name), _filled_up(ranks[name])
        pair = ops.matrix_bytes(_TYPE, rank, n_cols) + ops.matrix_bytes(_TYPE, rows.n_rows, rank)
        needs[ops] = needs.get(ops, 0) + pair + 4 * max_tokens * rank
    for ops, needed in needs.items():
        if needed > (free := ops.free_bytes()):
            raise DeviceError(
                f"the adapter needs {needed / 1e6:,.1f} MB; device {ops.name!r} has "
                f"{free / 1e6:,.1f} MB free beside the model; one of a smaller rank takes less, "
                "as does the model with a smaller max_seq_len (--max-seq-len)"
            )


def _filled_up(rank: int) -> int:
    return rank + -rank % _RANK_UNIT


def _values(file: GGUFFile, name: str) -> Floats:
    info = file.tensors[name]
    return dequantize(info.type, file.tensor_bytes(name)).reshape(info.shape)


def _on_device(ops: Ops, a: Floats, b: Floats, max_tokens: int) -> _LowRank:
    missing = _filled_up(len(a)) - len(a)
    a = np.pad(a, ((0, missing), (0, 0)))
    b = np.pad(b, ((0, 0), (0, missing)))
    return _LowRank(ops, _matrix(ops, a), _matrix(ops, b), ops.empty((max_tokens, len(a))))


def _matrix(ops: Ops, values: Floats) -> Matrix:
    n_rows, n_cols = values.shape
    data = np.ascontiguousarray(values, np.float32).reshape(-1).view(np.uint8)
    data.flags.writeable = False  # as a file's mapping, for which the products are compiled
    return ops.matrix(_TYPE, n_rows, n_cols, data)
