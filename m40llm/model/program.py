"""The decode program of a model: see device/instructions.py."""

from dataclasses import fields
from functools import partial
from typing import Any

from m40llm.device.instructions import Attend, Choose, Effect, Embed, Instruction, Project
from m40llm.model.arch import Architecture
from m40llm.model.hparams import HParams
from m40llm.model.kv_cache import KVType
from m40llm.model.weights import LayerWeights, Weights


def decode_program(weights: Weights) -> tuple[Instruction, ...]:
    """The instructions of a model with these weights; see `why_not`."""
    found: list[Instruction] = [Embed()]
    for layer, w in enumerate(weights.layers):
        at, project = f"blk.{layer}.", partial(_project, layer, w)
        found += _qkv(layer, w)
        found += [
            Attend(layer),
            project("add", "attn_output", "attn", "x"),
            project("swiglu", "ffn_gate_up", "x", "h", norm=f"{at}ffn_norm"),
            project("add", "ffn_down", "h", "x"),
        ]
    return (*found, Project("logits", "output", "x", "logits", norm="output_norm"), Choose())


def why_not(arch: Architecture, hp: HParams, weights: Weights, kv_type: KVType = "f16") -> str:
    """Why no program can be made of this model; empty where one can."""
    if kv_type != "f16":
        return f"the KV cache is in {kv_type}, which the device's own steps do not read yet"
    more = {
        "norms of Q and K": arch.qk_norm != "none",
        "norms after its blocks": arch.norms != "before",
        "layers without RoPE": arch.no_rope_step > 0,
        "layers of two kinds": arch.global_step > 0,
        "another activation": arch.activation != "silu",
        "experts": hp.n_experts > 0,
        "multipliers": (hp.embedding_scale, hp.residual_scale, hp.logit_scale) != (1, 1, 1),
    }
    if found := [what for what, is_there in more.items() if is_there]:
        return f"{arch.name} has {found[0]}, which the device's own steps do not know yet"
    for layer, w in enumerate(weights.layers):
        if len(w.ffn_gate_up) > 1:
            return f"ffn_gate and ffn_up of layer {layer} are of different types"
    return ""


def _qkv(layer: int, w: LayerWeights) -> list[Instruction]:
    """A product for each group of Q, K and V that are stacked."""
    found: list[Instruction] = []
    first_row = 0
    for i, matrix in enumerate(w.attn_qkv):
        at = f"blk.{layer}.attn_qkv"
        bias = None if w.attn_qkv_bias is None else f"{at}_bias.{i}"
        norm = f"blk.{layer}.attn_norm"
        found.append(Project("rotate", f"{at}.{i}", "x", "qkv", norm, bias, first_row))
        first_row += matrix.n_rows
    return found


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
