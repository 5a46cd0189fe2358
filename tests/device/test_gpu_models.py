"""Whole tiny models through the GPU kernels: on the emulator, and with `-m gpu` on the card."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m40llm import LLM, SamplingParams
from m40llm.device.decoder import FORMS
from m40llm.device.gpu.ops import GpuOps
from m40llm.device.packages import CUBLAS_PACKAGES
from m40llm.testing import write_tiny_gguf
from m40llm.testing.greedy import assert_same_greedy

SHAPE = {"head_dim": 64, "context_length": 64}
GRANITE = {
    "granite.residual_scale": 0.5,
    "granite.embedding_scale": 2.0,
    "granite.logit_scale": 1.5,
}
GREEDY = {"temperature": 0, "ignore_eos": True}
LONGROPE = {"type": "longrope", "factor": 4.0, "original_context_length": 16}
DEVICES = [
    pytest.param("emulator"),
    pytest.param("cuda", marks=pytest.mark.gpu),
]
BOTH_WAYS = [*DEVICES, pytest.param("cuda, cublas", marks=pytest.mark.gpu)]
MODELS: dict[str, dict[str, Any]] = {
    "F32": {},
    "F16": {"tensor_type": "F16"},
    "BF16": {"tensor_type": "BF16"},
    "Q8_0": {"tensor_type": "Q8_0", "tied": True},
    "Q4_1": {"tensor_type": "Q4_1"},
    "Q4_K": {"tensor_type": "Q4_K"},
    "TQ2_0, held as F16": {"tensor_type": "TQ2_0"},
    "Q2_K": {"tensor_type": "Q2_K"},
    "Q3_K": {"tensor_type": "Q3_K"},
    "IQ4_XS": {"tensor_type": "IQ4_XS"},
    "mixtral": {"arch": "mixtral", "tensor_type": "IQ4_NL"},
    "qwen3moe": {"arch": "qwen3moe", "tensor_type": "MXFP4", "n_experts_used": 3},
    "qwen2": {"arch": "qwen2", "tensor_type": "Q4_0"},
    "qwen3": {"arch": "qwen3", "tensor_type": "Q8_0"},
    "smollm3": {"arch": "smollm3", "n_layers": 4},
    "olmo2": {"arch": "olmo2"},
    "granite": {"arch": "granite", "metadata": GRANITE},
    "gemma2": {
        "arch": "gemma2",
        "n_layers": 4,
        "metadata": {
            "gemma2.attention.sliding_window": 12,
            "gemma2.attn_logit_softcapping": 1.5,
            "gemma2.final_logit_softcapping": 6.0,
        },
    },
    "gemma3": {
        "arch": "gemma3",
        "n_layers": 6,
        "metadata": {"gemma3.attention.sliding_window": 12},
    },
    "phi3": {"arch": "phi3", "tensor_type": "F16", "rope_factors": True, "rope_scaling": LONGROPE},
    "head_dim 32, a KV head each": {"head_dim": 32, "n_heads": 4, "n_kv_heads": 4},
    "head_dim 80, half turned": {"head_dim": 80, "rope_dim": 40},
    "head_dim 128, groups of 7": {"head_dim": 128, "n_heads": 7, "n_kv_heads": 1},
    "head_dim 256, yarn": {
        "head_dim": 256,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_context_length": 16},
    },
}


def load(path: Path, device: str) -> LLM:
    """On "cuda, cublas" the matrix products are cuBLAS's; skips where that is not installed.

    Elsewhere M40LLM_ENABLE_CUBLAS decides. The tokens are made by the ops, not by the decoder.
    """
    name, _, cublas = device.partition(", ")
    if cublas:
        pytest.importorskip("nvmath", reason=f"no cuBLAS: {CUBLAS_PACKAGES}")
    return LLM.load(path, device=name, cublas=True if cublas else None, decode="host")


def nll(logits: Any, ids: list[int]) -> Any:
    """Of each token but the first, given those before it."""
    shifted = logits[:-1].astype(np.float64)
    shifted -= shifted.max(1, keepdims=True)
    return np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(ids) - 1), ids[1:]]


@pytest.mark.parametrize("device", BOTH_WAYS)
@pytest.mark.parametrize("name", MODELS)
def test_logits_as_on_the_cpu(device: str, name: str, tmp_path: Path) -> None:
    """Prefill of 28, decode of 8; an FP16 cache moves logits of this spread by less than 0.1."""
    path = write_tiny_gguf(tmp_path / "tiny.gguf", **{**SHAPE, **MODELS[name]})
    with LLM.load(path, device="cpu") as cpu, load(path, device) as gpu:
        ids = np.random.default_rng(0).integers(0, cpu.hparams.vocab_size, 28).tolist()
        logits, exact = gpu.logits(ids), cpu.logits(ids)
        np.testing.assert_allclose(logits, exact, atol=0.1)
        np.testing.assert_allclose(nll(logits, ids), nll(exact, ids), atol=0.05)
        assert_same_greedy(gpu, cpu, ids, 8, gap=0.05)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["F16", "Q4_K", "qwen2", "head_dim 128, groups of 7"])
def test_mean_nll(device: str, name: str, tmp_path: Path) -> None:
    """Of 600 tokens, as an FP16 cache moves each by some hundredths either way."""
    shape = {**SHAPE, "context_length": 640, **MODELS[name]}
    path = write_tiny_gguf(tmp_path / "tiny.gguf", **shape)
    with LLM.load(path, device="cpu") as cpu, load(path, device) as gpu:
        ids = np.random.default_rng(1).integers(0, cpu.hparams.vocab_size, 600).tolist()
        ours, exact = nll(gpu.logits(ids), ids), nll(cpu.logits(ids), ids)
    assert abs(ours - exact).max() < 0.05
    assert abs(ours.mean() - exact.mean()) < 5e-4


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["qwen3", "smollm3", "granite", "gemma3", "olmo2"])
def test_decoded_on_the_device(device: str, name: str, tmp_path: Path) -> None:
    """Each form's tokens and log-probabilities, bit for bit; the host's loop rounds elsewhere."""
    path = write_tiny_gguf(tmp_path / "tiny.gguf", **{**SHAPE, **MODELS[name]})
    found = {}
    with load(path, device) as llm:
        engine = llm._open_engine()
        assert not isinstance(engine.model.decoder, str), engine.model.decoder
        for form in ("host", *FORMS):
            engine.decode_form = form  # type: ignore[assignment]
            steps = engine.generate([5, 7, 11, 2, 9], SamplingParams(max_tokens=12, **GREEDY))
            found[form] = [(step.token.token_id, step.token.logprob) for step in steps]
    assert found["graph"] == found["persistent"] == found["eager"]
    (ids, logprobs), (host_ids, host_logprobs) = (
        zip(*found[form], strict=True) for form in ("eager", "host")
    )
    assert ids == host_ids  # no near-tie in these
    assert logprobs == pytest.approx(host_logprobs, abs=0.05)


@pytest.mark.parametrize("device", DEVICES)
def test_256_greedy_tokens_as_on_the_cpu(device: str, tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", head_dim=64, context_length=512)
    with LLM.load(path, device="cpu") as cpu, load(path, device) as gpu:
        assert_same_greedy(gpu, cpu, [1, 2, 3], 256, gap=0.05)


@pytest.mark.parametrize("device", DEVICES)
def test_every_op_is_a_launch(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No op goes around the kernels: 1 embedding, 12 a layer, 3 for the logits."""
    monkeypatch.delenv("M40LLM_ENABLE_CUBLAS", raising=False)
    path = write_tiny_gguf(tmp_path / "tiny.gguf", **SHAPE)
    with load(path, device) as llm:
        ops = llm._open_engine().model.ops
        assert isinstance(ops, GpuOps)
        before = ops.card.n_launches
        llm.logits([1, 2, 3])
        n_layers = llm.hparams.n_layers
        assert ops.card.n_launches - before == 1 + 12 * n_layers + 3


@pytest.mark.gpu
def test_cublas_has_every_product(tmp_path: Path) -> None:
    """What is left of our launches: 7 products a layer and the logits' are cuBLAS's."""
    path = write_tiny_gguf(tmp_path / "tiny.gguf", **SHAPE)
    with load(path, "cuda, cublas") as llm:
        ops = llm._open_engine().model.ops
        assert isinstance(ops, GpuOps)
        assert "cuBLAS" in llm.device_reason
        before = ops.card.n_launches
        llm.logits([1, 2, 3])
        assert ops.card.n_launches - before == 1 + 5 * llm.hparams.n_layers + 2


@pytest.mark.parametrize("device", BOTH_WAYS)
@pytest.mark.parametrize("type", ["f32", "f16", "q8_0"])
def test_stories_are_the_same_everywhere(device: str, type: str, shared_data: Path) -> None:
    path = shared_data / "models" / f"stories260K.{type}.gguf"
    params = SamplingParams(temperature=0, max_tokens=32)
    with LLM.load(path, device="cpu") as cpu, load(path, device) as gpu:
        assert gpu.generate([1], params).text == cpu.generate([1], params).text
