"""A model with an adapter is the model whose weights are W + alpha / rank * scale * B A."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m40llm.device.cpu.ops import CpuOps
from m40llm.device.ops import Ops
from m40llm.errors import ModelFileError, UnsupportedModelError
from m40llm.gguf import GGUFFile, open_gguf
from m40llm.gguf.blocks import dequantize
from m40llm.model.arch import architecture_of
from m40llm.model.batch import Batch
from m40llm.model.hparams import HParams
from m40llm.model.lora import load_adapter
from m40llm.model.transformer import Transformer
from m40llm.testing import write_tiny_gguf
from m40llm.testing.adapters import write_adapter
from m40llm.testing.models import build
from m40llm.testing.noisy_ops import NoisyOps
from m40llm.testing.reference_ops import ReferenceOps

ALL = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
MODELS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "llama": ({"arch": "llama"}, ALL),
    "some matrices": ({"arch": "qwen2"}, ("attn_v", "ffn_down")),
    "phi3": ({"arch": "phi3"}, ("attn_qkv", "attn_output", "ffn_up", "ffn_down")),
    "olmo2": ({"arch": "olmo2"}, ALL),
    "mixtral": ({"arch": "mixtral"}, ALL[:4]),
}
IDS = np.random.default_rng(1).integers(0, 250, 24).tolist()


def tensors_of(parts: tuple[str, ...]) -> list[str]:
    return ["blk.0." + part + ".weight" for part in parts] + ["output.weight"]


def with_adapter(model: Path, adapter: Path, ops: Ops, scale: float = 1.0) -> Transformer:
    made = build(model, ops)
    with open_gguf(adapter) as file:
        made.adapter = load_adapter(
            made.ops_of, file, made.arch, made.hp, max_tokens=made.workspace.max_tokens, scale=scale
        )
    return made


def logits(model: Transformer) -> np.ndarray:
    return model.ops.read(model.forward(Batch.of((0, 0, IDS), logits="all")))


def values(file: GGUFFile, name: str) -> np.ndarray:
    info = file.tensors[name]
    return dequantize(info.type, file.tensor_bytes(name)).reshape(info.shape)


def merged(model: Path, adapter: Path, factor: float) -> Path:
    """The same file, its F32 weights changed for good."""
    path = Path(shutil.copy(model, model.with_suffix(".merged.gguf")))
    with open_gguf(adapter) as changes, open_gguf(model) as file, path.open("r+b") as out:
        for name in {name.rpartition(".")[0] for name in changes.tensors}:
            a, b = (values(changes, f"{name}.lora_{half}").astype(np.float64) for half in "ab")
            w = values(file, name)
            out.seek(file.tensors[name].offset)
            out.write((w + factor * b @ a).astype(np.float32).tobytes())
    return path


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_as_merged(name: str, dtype: Any, tmp_path: Path) -> None:
    shape, parts = MODELS[name]
    model = write_tiny_gguf(tmp_path / "m.gguf", **shape)
    adapter = write_adapter(tmp_path / "a.gguf", model, tensors_of(parts), dtype=dtype)
    exact = logits(build(merged(model, adapter, 0.5 * 6 / 3), ReferenceOps()))
    plain = logits(build(model, ReferenceOps()))
    oracle = logits(with_adapter(model, adapter, ReferenceOps(), 0.5))
    assert np.abs(plain - exact).max() > 0.5  # it does something
    # The merged file's weights were rounded to FP32, which is what the noise of products is.
    bound = 2 * max(
        np.abs(logits(with_adapter(model, adapter, NoisyOps(seed), 0.5)) - oracle).max()
        for seed in range(4)
    )
    assert np.abs(oracle - exact).max() <= bound
    assert np.abs(logits(with_adapter(model, adapter, CpuOps(), 0.5)) - oracle).max() <= bound


def test_without_again(tmp_path: Path) -> None:
    """The base weights are as they were, bit for bit."""
    model = write_tiny_gguf(tmp_path / "m.gguf", tensor_type="Q8_0")
    adapter = write_adapter(tmp_path / "a.gguf", model, tensors_of(ALL))
    plain = logits(build(model, CpuOps()))
    changed = with_adapter(model, adapter, CpuOps())
    assert np.abs(logits(changed) - plain).max() > 0.5
    changed.adapter = None
    np.testing.assert_array_equal(logits(changed), plain)


@pytest.mark.parametrize(
    ("of_model", "tensors", "error", "message"),
    [
        ({"arch": "qwen2"}, ["blk.0.attn_q.weight"], UnsupportedModelError, "architecture"),
        ({"n_ff": 160}, ["blk.0.ffn_up.weight"], ModelFileError, "expected shape"),
        ({"n_layers": 1}, ["blk.1.attn_q.weight"], UnsupportedModelError, "may change"),
        ({}, ["token_embd.weight"], UnsupportedModelError, "may change"),
    ],
)
def test_adapters_that_do_not_fit(
    of_model: dict[str, Any], tensors: list[str], error: type[Exception], message: str,
    tmp_path: Path,
) -> None:  # fmt: skip
    other = write_tiny_gguf(tmp_path / "m.gguf")
    adapter = write_adapter(tmp_path / "a.gguf", other, tensors)
    model = write_tiny_gguf(tmp_path / "n.gguf", **of_model)
    with pytest.raises(error, match=message):
        with_adapter(model, adapter, CpuOps())


def test_one_that_acts_in_parts_of_a_text(tmp_path: Path) -> None:
    """Applied to all tokens, as others are, it would answer wrongly."""
    model = write_tiny_gguf(tmp_path / "m.gguf")
    keys = {"adapter.alora.invocation_tokens": [3, 4]}
    adapter = write_adapter(tmp_path / "a.gguf", model, tensors_of(ALL), keys=keys)
    with pytest.raises(UnsupportedModelError, match="alora"):
        with_adapter(model, adapter, CpuOps())


def test_a_model_is_no_adapter(tmp_path: Path) -> None:
    model = write_tiny_gguf(tmp_path / "m.gguf")
    with open_gguf(model) as file, pytest.raises(ModelFileError, match=r"general\.type"):
        load_adapter(CpuOps(), file, architecture_of(file), HParams.from_gguf(file), max_tokens=4)
