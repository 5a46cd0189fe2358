"""The model's tensors on a device: uploaded once, after check_tensors."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m40llm.device.ops import Buffer, Matrix, MatrixData, Ops, Sizes
from m40llm.gguf import GGUFFile, TensorInfo
from m40llm.gguf.blocks import dequantize, row_bytes
from m40llm.model.arch import (
    ROPE_FACTORS,
    Architecture,
    RowRange,
    layer_specs,
    rows_of,
)
from m40llm.model.hparams import HParams
from m40llm.model.part import Part
from m40llm.progress import Progress


@dataclass(frozen=True)
class LayerWeights:
    """One layer's tensors under their GGUF names; a bias that the file lacks is None."""

    attn_q: Matrix  # [q_dim, n_embd]
    attn_k: Matrix  # [kv_dim, n_embd]
    attn_v: Matrix  # [kv_dim, n_embd]
    attn_output: Matrix  # [n_embd, q_dim]
    # None where the layer has experts:
    ffn_gate: Matrix | None = None  # [n_ff, n_embd]
    ffn_up: Matrix | None = None  # [n_ff, n_embd]
    ffn_down: Matrix | None = None  # [n_embd, n_ff]
    attn_norm: Buffer | None = None  # [n_embd], and the three below: as the architecture has them
    post_attention_norm: Buffer | None = None
    ffn_norm: Buffer | None = None
    post_ffw_norm: Buffer | None = None
    attn_q_bias: Buffer | None = None
    attn_k_bias: Buffer | None = None
    attn_v_bias: Buffer | None = None
    attn_output_bias: Buffer | None = None
    ffn_gate_bias: Buffer | None = None
    ffn_up_bias: Buffer | None = None
    ffn_down_bias: Buffer | None = None
    # The same weights again, above one another, where the device makes one product of a group.
    attn_qkv: tuple[Matrix, ...] = ()  # of [q_dim + 2 kv_dim, n_embd] together
    attn_qkv_bias: Buffer | None = None  # [q_dim + 2 kv_dim]
    ffn_gate_up: tuple[Matrix, ...] = ()  # of [2 n_ff, n_embd] together
    ffn_gate_up_bias: Buffer | None = None  # [2 n_ff]
    attn_q_norm: Buffer | None = None  # [head_dim] or [q_dim]
    attn_k_norm: Buffer | None = None  # [head_dim] or [kv_dim]
    experts: "Experts | None" = None


@dataclass(frozen=True)
class Experts:
    """A layer's feed-forward networks, of which each token uses a few, and who chooses them."""

    router: Matrix  # [n_experts, n_embd]
    gate: tuple[Matrix, ...]  # each [n_ff, n_embd]
    up: tuple[Matrix, ...]
    down: tuple[Matrix, ...]  # each [n_embd, n_ff]
    # The same weights again, above one another, where the device makes one product of a group.
    gate_up: tuple[Matrix, ...]  # of [2 n_experts n_ff, n_embd] together: all gates, then all ups
    all_down: tuple[Matrix, ...]  # of [n_experts n_embd, n_ff]


_STACKS = {"attn_qkv": ("attn_q", "attn_k", "attn_v"), "ffn_gate_up": ("ffn_gate", "ffn_up")}
_EMBEDDING = "token_embd.weight"
_OF_EXPERTS = ("ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
_STACKED = {part for parts in _STACKS.values() for part in parts}


@dataclass(frozen=True)
class Weights:
    """All tensors of a model; `output` has the weights of `token_embd` where the file ties them.

    Of a part of a model, what the other parts have is None.
    """

    token_embd: Matrix  # [vocab_size, n_embd]
    layers: tuple[LayerWeights, ...]
    output_norm: Buffer  # [n_embd]
    output: Matrix  # [vocab_size, n_embd]


def is_tied(file: GGUFFile) -> bool:
    """Whether the embedding is the output matrix, too."""
    return "output.weight" not in file.tensors


def tensors_of(file: GGUFFile, part: Part) -> Iterator[TensorInfo]:
    """What a device needs that holds the part; the embedding also where it is the output alone."""
    for info in file.tensors.values():
        is_output = info.name == _EMBEDDING and part.has_output and is_tied(file)
        if part.holds(info.name) or is_output:
            yield info


def weight_bytes(sizes: Sizes, file: GGUFFile, part: Part) -> int:
    """Memory that the weights take on the device, reckoned before anything is uploaded."""
    total, is_both = 0, part.has_output and is_tied(file)
    for info in tensors_of(file, part):
        if len(info.shape) == 1:
            total += 4 * info.n_elements
            continue
        if info.name == _EMBEDDING and part.has_embedding:
            total += sizes.table_bytes(info.type, *info.shape, is_tied=is_both)
        if info.name != _EMBEDDING or is_both:
            total += sizes.matrix_bytes(info.type, info.n_rows, info.shape[-1])
    return total


def load_weights(
    ops: Ops,
    file: GGUFFile,
    arch: Architecture,
    hp: HParams,
    progress: Progress | None = None,
    part: Part | None = None,
) -> Weights:
    """Uploads every tensor, of the part or of all; call `check_tensors` first."""
    part = part or Part.whole(hp.n_layers)
    names = [spec.name for spec in layer_specs(arch, hp)]
    rows, layers = rows_of(arch, hp), []
    for layer in part.layers:
        layers.append(_layer(ops, file, f"blk.{layer}", names, rows))
        if progress:
            progress("loading weights", (layer + 1) / hp.n_layers)
    output = _EMBEDDING if is_tied(file) else "output.weight"
    has_output = part.has_output
    return Weights(
        token_embd=_table(ops, file, _EMBEDDING) if part.has_embedding else None,
        layers=tuple(layers),
        output_norm=_vector(ops, file, "output_norm.weight") if has_output else None,
        output=_matrix(ops, file, output) if has_output else None,
    )


def _layer(
    ops: Ops, file: GGUFFile, prefix: str, names: Sequence[str], rows: Mapping[str, RowRange]
) -> LayerWeights:
    tensors: dict[str, Any] = {
        _field(name): _tensor(ops, file, f"{prefix}.{name}")
        for name in names
        if name.removesuffix(".weight") not in {*_STACKED, *_STACKS, *_OF_EXPERTS}
    }
    if f"{prefix}.ffn_gate_inp.weight" in file.tensors:
        tensors["experts"] = _experts(ops, file, prefix)
    for whole, parts in _STACKS.items():
        if rows[parts[0]].tensor not in names:
            continue  # experts are there instead
        matrices = [_rows(file, prefix, rows[part]) for part in parts]
        tensors[whole], each = ops.stack(matrices)
        tensors |= dict(zip(parts, each, strict=True))
        lengths = [rows[part].n_rows for part in parts]
        tensors[f"{whole}_bias"] = _stacked_bias(ops, file, prefix, parts, lengths)
    return LayerWeights(**tensors)


def _experts(ops: Ops, file: GGUFFile, prefix: str) -> Experts:
    """Each tensor on the device once; its experts are parts of it, or of one with another."""

    def each(name: str) -> list[MatrixData]:
        info = file.tensors[f"{prefix}.{name}.weight"]
        n_experts, n_rows, n_cols = info.shape
        data = file.tensor_bytes(info.name).reshape(n_experts, -1)
        return [MatrixData(info.type, n_rows, n_cols, part) for part in data]

    router, gate, up, down = _OF_EXPERTS
    of_router = _matrix(ops, file, f"{prefix}.{router}.weight")
    return stacked_experts(ops, of_router, each(gate), each(up), each(down))


def stacked_experts(
    ops: Ops,
    router: Matrix,
    gate: Sequence[MatrixData],
    up: Sequence[MatrixData],
    down: Sequence[MatrixData],
) -> Experts:
    """Of a matrix of each expert."""
    n_experts = len(gate)
    gate_up, gates_and_ups = ops.stack([*gate, *up])
    all_down, downs = ops.stack(down)
    gates, ups = gates_and_ups[:n_experts], gates_and_ups[n_experts:]
    return Experts(router, gates, ups, downs, gate_up, all_down)


def _stacked_bias(
    ops: Ops, file: GGUFFile, prefix: str, parts: Sequence[str], lengths: Sequence[int]
) -> Buffer | None:
    """Zeros where only some of the parts have one."""
    names = [f"{prefix}.{part}.bias" for part in parts]
    if not any(name in file.tensors for name in names):
        return None
    values = [
        read_vector(file, name) if name in file.tensors else np.zeros(length, np.float32)
        for name, length in zip(names, lengths, strict=True)
    ]
    return _uploaded(ops, np.concatenate(values))


def _field(name: str) -> str:
    """attn_q.weight -> attn_q, attn_q.bias -> attn_q_bias"""
    return name.removesuffix(".weight").replace(".", "_")


def _tensor(ops: Ops, file: GGUFFile, name: str) -> Matrix | Buffer | None:
    if name not in file.tensors:
        return None
    is_matrix = len(file.tensors[name].shape) == 2
    return _matrix(ops, file, name) if is_matrix else _vector(ops, file, name)


def _table(ops: Ops, file: GGUFFile, name: str) -> Matrix:
    info = file.tensors[name]
    n_rows, n_cols = info.shape
    return ops.table(info.type, n_rows, n_cols, file.tensor_bytes(name))


def _matrix(ops: Ops, file: GGUFFile, name: str) -> Matrix:
    info = file.tensors[name]
    n_rows, n_cols = info.shape
    return ops.matrix(info.type, n_rows, n_cols, file.tensor_bytes(name))


def _rows(file: GGUFFile, prefix: str, rows: RowRange) -> MatrixData:
    info = file.tensors[f"{prefix}.{rows.tensor}"]
    n_cols, n_bytes = info.shape[1], row_bytes(info.type, info.shape[1])
    data = file.tensor_bytes(info.name)[rows.first * n_bytes :][: rows.n_rows * n_bytes]
    return MatrixData(info.type, rows.n_rows, n_cols, data)


def _vector(ops: Ops, file: GGUFFile, name: str) -> Buffer:
    return _uploaded(ops, read_vector(file, name))


def _uploaded(ops: Ops, values: NDArray[np.float32]) -> Buffer:
    buffer = ops.empty(values.shape)
    ops.write(buffer, values)
    return buffer


def read_vector(file: GGUFFile, name: str) -> NDArray[np.float32]:
    """A one-dimensional tensor as float32[n] on the host."""
    info = file.tensors[name]
    values = dequantize(info.type, file.tensor_bytes(name))
    return values.reshape(info.n_elements)


def rope_factors(file: GGUFFile, hp: HParams, max_seq_len: int) -> NDArray[np.float32] | None:
    """float32[rope_dim / 2], what divides each frequency of RoPE; None: nothing.

    LongRoPE has two sets, whether or not the file names it as the scaling (llama.cpp's converter
    does not): the long one for any context longer than the one that the model was trained in first.
    """
    always, short, long = ROPE_FACTORS
    name = always
    if long in file.tensors:
        name = long if max_seq_len > hp.rope.original_context_length else short
    return read_vector(file, name) if name in file.tensors else None
