"""The model's tensors on a device: checked against the architecture first, then uploaded once."""

from dataclasses import dataclass

import numpy as np

from m40llm.device.ops import Buffer, Matrix, Ops
from m40llm.errors import ModelFileError, UnsupportedModelError
from m40llm.gguf import GGUFFile, TensorInfo
from m40llm.gguf.blocks import can_dequantize, dequantize
from m40llm.model.arch import Architecture, TensorSpec, layer_specs, tensor_specs
from m40llm.model.hparams import HParams
from m40llm.progress import Progress

# Old converters stored what the model computes anyway.
_DERIVED = {"rope_freqs.weight", "attn_rot_embd.weight", "attn.rotary_emb.inv_freq"}


@dataclass(frozen=True)
class LayerWeights:
    """One layer's tensors under their GGUF names; a bias that the file lacks is None."""

    attn_norm: Buffer  # [n_embd]
    attn_q: Matrix  # [q_dim, n_embd]
    attn_k: Matrix  # [kv_dim, n_embd]
    attn_v: Matrix  # [kv_dim, n_embd]
    attn_output: Matrix  # [n_embd, q_dim]
    ffn_norm: Buffer  # [n_embd]
    ffn_gate: Matrix  # [n_ff, n_embd]
    ffn_up: Matrix  # [n_ff, n_embd]
    ffn_down: Matrix  # [n_embd, n_ff]
    attn_q_bias: Buffer | None = None
    attn_k_bias: Buffer | None = None
    attn_v_bias: Buffer | None = None
    attn_output_bias: Buffer | None = None
    ffn_gate_bias: Buffer | None = None
    ffn_up_bias: Buffer | None = None
    ffn_down_bias: Buffer | None = None


@dataclass(frozen=True)
class Weights:
    """All tensors of a model; `output` has the weights of `token_embd` where the file ties them."""

    token_embd: Matrix  # [vocab_size, n_embd]
    layers: tuple[LayerWeights, ...]
    output_norm: Buffer  # [n_embd]
    output: Matrix  # [vocab_size, n_embd]


def check_tensors(file: GGUFFile, arch: Architecture, hp: HParams) -> None:
    """Every tensor is there, of the right shape and of a type that can be read; no other is.

    Raises ModelFileError naming the tensor; UnsupportedModelError for one that the architecture
    does not know, since leaving it out would answer wrongly.
    """
    specs = {spec.name: spec for spec in tensor_specs(arch, hp)}
    for spec in specs.values():
        info = file.tensors.get(spec.name)
        if info is not None:
            _check_tensor(info, spec)
        elif not spec.is_optional:
            raise ModelFileError(f"tensor {spec.name}: missing; expected {list(spec.shape)}")
    for name in file.tensors:
        if name not in specs and not any(name.endswith(derived) for derived in _DERIVED):
            raise UnsupportedModelError(
                f"tensor {name}: not part of a plain {arch.name} model; "
                "this version would answer wrongly without it"
            )


def _check_tensor(info: TensorInfo, spec: TensorSpec) -> None:
    if info.shape != spec.shape:
        hint = ": it is transposed" if info.shape == spec.shape[::-1] else ""
        raise ModelFileError(
            f"tensor {info.name}: expected shape {list(spec.shape)}, "
            f"got {list(info.shape)}{hint} (outermost dimension first)"
        )
    if not can_dequantize(info.type):
        raise UnsupportedModelError(f"tensor {info.name}: type {info.type.name} cannot be read")


def weight_bytes(ops: Ops, file: GGUFFile) -> int:
    """Memory that the weights take on the device, reckoned before anything is uploaded."""
    is_tied = "output.weight" not in file.tensors
    embd = file.tensors["token_embd.weight"]
    total = ops.table_bytes(embd.type, *embd.shape, is_tied=is_tied)
    for info in file.tensors.values():
        if len(info.shape) != 2:
            total += 4 * info.n_elements
        elif info is not embd or is_tied:
            total += ops.matrix_bytes(info.type, *info.shape)
    return total


def load_weights(
    ops: Ops, file: GGUFFile, arch: Architecture, hp: HParams, progress: Progress | None = None
) -> Weights:
    """Uploads every tensor; call `check_tensors` first."""
    names = [spec.name for spec in layer_specs(arch, hp)]
    layers = []
    for layer in range(hp.n_layers):
        tensors = {_field(name): _tensor(ops, file, f"blk.{layer}.{name}") for name in names}
        layers.append(LayerWeights(**tensors))
        if progress:
            progress("loading weights", (layer + 1) / hp.n_layers)
    embd = file.tensors["token_embd.weight"]
    n_rows, n_cols = embd.shape
    is_tied = "output.weight" not in file.tensors
    return Weights(
        token_embd=ops.table(embd.type, n_rows, n_cols, file.tensor_bytes(embd.name)),
        layers=tuple(layers),
        output_norm=_vector(ops, file, "output_norm.weight"),
        output=_matrix(ops, file, embd.name if is_tied else "output.weight"),
    )


def _field(name: str) -> str:
    """attn_q.weight -> attn_q, attn_q.bias -> attn_q_bias"""
    return name.removesuffix(".weight").replace(".", "_")


def _tensor(ops: Ops, file: GGUFFile, name: str) -> Matrix | Buffer | None:
    if name not in file.tensors:
        return None
    is_matrix = len(file.tensors[name].shape) == 2
    return _matrix(ops, file, name) if is_matrix else _vector(ops, file, name)


def _matrix(ops: Ops, file: GGUFFile, name: str) -> Matrix:
    info = file.tensors[name]
    n_rows, n_cols = info.shape
    return ops.matrix(info.type, n_rows, n_cols, file.tensor_bytes(name))


def _vector(ops: Ops, file: GGUFFile, name: str) -> Buffer:
    values = read_vector(file, name)
    buffer = ops.empty(values.shape)
    ops.write(buffer, values)
    return buffer


def read_vector(file: GGUFFile, name: str) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """A one-dimensional tensor as float32[n] on the host."""
    info = file.tensors[name]
    values = dequantize(info.type, file.tensor_bytes(name))
    return values.reshape(info.n_elements)
