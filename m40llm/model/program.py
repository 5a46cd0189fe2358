"""The decode program of a model: see device/instructions.py."""

from dataclasses import fields
from functools import partial
from typing import Any

from m40llm.device.instructions import Attend, Choose, Effect, Embed, Instruction, Project
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


def why_not(weights: Weights) -> str:
    """Why no program can be made of these weights; empty where one can."""
    for layer, w in enumerate(weights.layers):
        if w.ffn_gate_up is None:
            return f"ffn_gate and ffn_up of layer {layer} are of different types"
    return ""


def _qkv(layer: int, w: LayerWeights) -> list[Instruction]:
    """One product where Q, K and V are stacked, else one each."""
    norm = f"blk.{layer}.attn_norm"
    if w.attn_qkv is not None:
        return [_project(layer, w, "rotate", "attn_qkv", "x", "qkv", norm=norm)]
    found: list[Instruction] = []
    first_row = 0
    for name in ("attn_q", "attn_k", "attn_v"):
        found.append(_project(layer, w, "rotate", name, "x", "qkv", norm=norm, first_row=first_row))
        first_row += getattr(w, name).n_rows
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
        found |= {f"blk.{layer}.{field.name}": getattr(w, field.name) for field in fields(w)}
    return found
