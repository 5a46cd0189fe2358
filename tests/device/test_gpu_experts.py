"""Layers with experts on a GPU: few rows choose and multiply there, many by expert; both alike."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as GGMLType

from m40llm import LLM
from m40llm.device import open_device
from m40llm.device.gpu.ops import GpuOps
from m40llm.device.ops import MatrixData
from m40llm.fuzz.blocks import random_tensor
from m40llm.fuzz.bounds import assert_within, gamma
from m40llm.gguf import open_gguf
from m40llm.gguf.blocks import dequantize
from m40llm.model.batch import Batch
from m40llm.model.experts import add_experts, route
from m40llm.model.hparams import HParams
from m40llm.model.weights import stacked_experts
from m40llm.model.workspace import Workspace
from m40llm.testing import write_tiny_gguf

DEVICES = ["emulator", pytest.param("cuda", marks=pytest.mark.gpu)]
TYPES = {  # of gate, up and down
    "of one type": ("F16", "F16", "F16"),
    "gate and up of different types": ("Q8_0", "F16", "Q4_0"),
}


def hparams(folder: Path, **changed: Any) -> HParams:
    with open_gguf(write_tiny_gguf(folder / "tiny.gguf", arch="qwen3moe", n_layers=1)) as file:
        return replace(HParams.from_gguf(file), n_experts=6, n_experts_used=3, **changed)


def drawn(rng: np.random.Generator, hp: HParams, name: str, n_rows: int, n_cols: int) -> Any:
    """A matrix of each expert."""
    kind = GGMLType[name]
    data = random_tensor(rng, (hp.n_experts, n_rows, n_cols), n_cols**-0.5, kind)
    return [MatrixData(kind, n_rows, n_cols, np.ravel(each).view(np.uint8)) for each in data]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("names", TYPES)
@pytest.mark.parametrize("how", [{}, {"residual_scale": 0.25, "expert_weights_norm": False}])
def test_by_slot_as_by_expert(
    device: str, names: str, how: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two tokens of three experts each: exactly as many slots as there are experts.

    The sums of a slot's products have the same order in both. What differs are silu * up, by at
    most gamma(16) of it, which `down` carries on, and the order in which products are added to x.
    """
    rng, hp, (ops, _) = np.random.default_rng(0), hparams(tmp_path, **how), open_device(device)
    gate, up = (drawn(rng, hp, name, hp.n_ff, hp.n_embd) for name in TYPES[names][:2])
    down = drawn(rng, hp, TYPES[names][2], hp.n_embd, hp.n_ff)
    router = rng.normal(0, 2 * hp.n_embd**-0.5, (hp.n_experts, hp.n_embd)).astype(np.float32)
    args = (GGMLType.F32, *router.shape, router.reshape(-1).view(np.uint8))
    w = stacked_experts(ops, ops.matrix(*args), gate, up, down)
    assert len(w.gate_up) == len(set(TYPES[names][:2]))
    rows = Workspace(ops, hp, 4, 1).rows(2)
    x, before = (rng.standard_normal((2, hp.n_embd), np.float32) for _ in range(2))
    found = []
    for experts in (ops.experts, None):
        monkeypatch.setattr(ops, "experts", experts)
        ops.write(rows.x_norm, x)
        ops.write(rows.x, before)
        route(ops, w, rows, rows.x_norm)
        add_experts(ops, w, rows, rows.x_norm, hp)
        found.append(ops.read(rows.x))
        if experts is not None:
            of_slots = [getattr(rows.expert_rows, n) for n in ("ids", "shares", "gate", "down")]
            ids, shares, gated, made = map(ops.read, of_slots)
    weights = np.stack([dequantize(d.ggml_type, d.data.reshape(d.n_rows, -1)) for d in down])
    carried = np.einsum("irc,ic->ir", np.abs(weights[ids]), np.abs(gated).astype(np.float64))
    added = np.abs(shares)[:, None] * (np.abs(made) + carried)
    magnitude = np.abs(before) + added.reshape(2, -1, hp.n_embd).sum(axis=1)
    assert_within(found[0], found[1], gamma(16 + 2 * hp.n_experts_used) * magnitude)


@pytest.mark.parametrize("device", DEVICES)
def test_decode_waits_for_nothing(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one row nothing is read before its logits: 13 launches a layer, five of them behind the
    norm for all experts together."""
    path = write_tiny_gguf(tmp_path / "tiny.gguf", arch="mixtral", head_dim=64, context_length=64)
    with LLM.load(path, device=device, cublas=False, decode="host") as llm:
        model = llm._open_engine().model
        assert isinstance(model.ops, GpuOps)
        model.forward(Batch.of((0, 0, [1])))
        monkeypatch.setattr(model.ops, "read", None)
        before = model.ops.card.n_launches
        model.forward(Batch.of((0, 1, [2])))
        assert model.ops.card.n_launches - before == 1 + 13 * model.hp.n_layers + 3
