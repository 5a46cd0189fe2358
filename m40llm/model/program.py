"""The decode program of a model: see device/instructions.py."""

from dataclasses import fields
from functools import partial
from typing import Any

from m40llm.device.instructions import (
    AddNormed,
    Attend,
    Choose,
    Effect,
    Embed,
    Instruction,
    Project,
)
from m40llm.model.arch import Architecture
from m40llm.model.hparams import HParams
from m40llm.model.kv_cache import KVType
from m40llm.model.weights import LayerWeights, Weights


def decode_program(arch: Architecture, hp: HParams, weights: Weights) -> tuple[Instruction, ...]:
    """The instructions of a model with these weights; see `why_not`."""
    gate: Effect = "geglu" if arch.activation == "gelu" else "swiglu"
    found: list[Instruction] = [Embed(factor=arch.embedding_factor(hp))]
    for layer, w in enumerate(weights.layers):
        at, add = f"blk.{layer}.", partial(_add, layer, w, hp.residual_scale)
        ffn_norm = None if w.ffn_norm is None else f"{at}ffn_norm"
        found += _qkv(layer, w)
        found.append(Attend(layer, **_norms_of_qk(layer, w)))
        found += add("attn_output", "attn", "post_attention_norm")
        found.append(_project(layer, w, gate, "ffn_gate_up", "x", "h", norm=ffn_norm))
        found += add("ffn_down", "h", "post_ffw_norm")
    norm, factor = "output_norm", 1 / hp.logit_scale
    logits = Project("logits", "output", "x", "logits", norm=norm, factor=factor)
    return (*found, logits, Choose())


def why_never(arch: Architecture, hp: HParams, kv_type: KVType = "f16") -> str:
    """Why no program can be made of such a model, whatever its weights; empty where one may."""
    if kv_type != "f16":
        return f"the KV cache is in {kv_type}, which the decode program does not read yet"
    if hp.n_experts > 0:
        return f"{arch.name} has experts, which the decode program does not know yet"
    if any(arch.softcaps(hp)):
        return f"{arch.name} has soft caps, which the decode program does not know yet"
    return ""


def why_not(arch: Architecture, hp: HParams, weights: Weights, kv_type: KVType = "f16") -> str:
    """Why no program can be made of this model; empty where one can."""
    if reason := why_never(arch, hp, kv_type):
        return reason
    for layer, w in enumerate(weights.layers):
        if len(w.ffn_gate_up) > 1:
            return f"ffn_gate and ffn_up of layer {layer} are of different types"
    return ""


def _qkv(layer: int, w: LayerWeights) -> list[Instruction]:
    """A product for each group of Q, K and V that are stacked."""
    found: list[Instruction] = []
    first_row = 0
    effect: Effect = "rotate" if w.attn_q_norm is None else "store"
    for i, matrix in enumerate(w.attn_qkv):
        at = f"blk.{layer}.attn_qkv"
        bias = None if w.attn_qkv_bias is None else f"{at}_bias.{i}"
        norm = None if w.attn_norm is None else f"blk.{layer}.attn_norm"
        found.append(Project(effect, f"{at}.{i}", "x", "qkv", norm, bias, first_row, layer))
        first_row += matrix.n_rows
    return found


def _norms_of_qk(layer: int, w: LayerWeights) -> dict[str, str]:
    """What Attend is told of the norms of Q and K."""
    if w.attn_q_norm is None:
        return {}
    return {f"{part}_norm": f"blk.{layer}.attn_{part}_norm" for part in "qk"}


def _add(
    layer: int, w: LayerWeights, factor: float, name: str, x: str, norm: str
) -> list[Instruction]:
    """A block's end: what is added to the residual stream, through a norm if the layer has one."""
    if getattr(w, norm) is None:
        return [_project(layer, w, "add", name, x, "x", factor=factor)]
    plain = _project(layer, w, "store", name, x, "y")
    return [plain, AddNormed(f"blk.{layer}.{norm}", factor=factor)]


def _project(
    layer: int, w: LayerWeights, effect: Effect, name: str, x: str, out: str, **more: Any
) -> Project:
    """With the bias, if the layer has one."""
    has_bias = getattr(w, f"{name}_bias") is not None
    bias = f"blk.{layer}.{name}_bias" if has_bias else None
    return Project(effect, f"blk.{layer}.{name}", x, out, bias=bias, **more)


def weights_by_name(weights: Weights) -> dict[str, Any]:
    """All that a program names."""
    found = {"output": weights.output, "output_norm": weights.output_norm}
    for layer, w in enumerate(weights.layers):
        at = f"blk.{layer}."
        found |= {at + field.name: getattr(w, field.name) for field in fields(w)}
        found[f"{at}ffn_gate_up"] = w.ffn_gate_up[0] if len(w.ffn_gate_up) == 1 else None
        first_row = 0
        for i, matrix in enumerate(w.attn_qkv):
            found[f"{at}attn_qkv.{i}"] = matrix
            if w.attn_qkv_bias is not None:
                end = first_row + matrix.n_rows
                found[f"{at}attn_qkv_bias.{i}"] = w.attn_qkv_bias[first_row:end]
            first_row += matrix.n_rows
    return found
