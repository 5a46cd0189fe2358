"""`m40llm bench decode` on a small shape: what it prints, what it refuses, what it would notice."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as GGMLType

from m40llm.bench.decode import step_bytes, time_decode
from m40llm.bench.shapes import SHAPES, TYPES, tensor_type
from m40llm.bench.synthetic import random_blocks, synthetic_model
from m40llm.device import open_device
from m40llm.device.decoder import Answer
from m40llm.device.gpu.ops import GpuOps
from m40llm.errors import DeviceError, RequestError
from m40llm.gguf.blocks import dequantize, row_bytes
from m40llm.llm import LLM
from m40llm.model.hparams import HParams
from m40llm.model.rope_params import RopeParams
from m40llm.model.transformer import Transformer
from m40llm.testing import write_tiny_gguf

SMALL = HParams(
    arch="llama",
    context_length=64,
    vocab_size=512,
    n_layers=2,
    n_embd=256,
    n_ff=512,
    n_heads=4,
    n_kv_heads=2,
    head_dim=64,
    norm_eps=1e-5,
    rope=RopeParams(rope_dim=64),
)


@pytest.fixture(scope="module", params=["emulator", pytest.param("cuda", marks=pytest.mark.gpu)])
def ops(request: pytest.FixtureRequest) -> GpuOps:
    found, _ = open_device(request.param)
    assert isinstance(found, GpuOps)
    return found


@pytest.mark.parametrize(("kind", "n_seqs"), [("F16", 1), ("Q4_K_M", 2)])
def test_rows(ops: GpuOps, kind: str, n_seqs: int) -> None:
    model = synthetic_model(ops, SMALL, kind, n_seqs=n_seqs, max_seq_len=16)
    for form in ("eager", "persistent"):
        row = time_decode(model, ("small", kind), form, 3, 4, None)  # type: ignore[arg-type]
        assert row.n_seqs == n_seqs
        assert row.tokens_per_s == pytest.approx(1e3 * n_seqs / row.ms)
        assert row.largest_logit_error < 0.05
        assert row.bytes_a_step == step_bytes(model, 5)
    n_kv = 4 * n_seqs * 5 * SMALL.kv_dim * SMALL.n_layers
    if kind == "F16":
        n_weights = 2 * (512 * 256 + 256 * 256 + 1024 * 256 + 256 * 512) + 512 * 256
        assert step_bytes(model, 5) == 2 * n_weights + 2 * 8 * 256 + n_kv


def test_a_shape_with_norms_of_q_and_k(ops: GpuOps) -> None:
    model = synthetic_model(ops, replace(SMALL, arch="qwen3"), "F16", n_seqs=1, max_seq_len=16)
    assert not isinstance(model.decoder, str)
    plain = synthetic_model(ops, SMALL, "F16", n_seqs=1, max_seq_len=16)
    n_norms = 2 * SMALL.n_layers * SMALL.head_dim
    assert step_bytes(model, 5) == step_bytes(plain, 5) + 4 * n_norms


def test_of_experts_as_many_are_read_as_are_used(tmp_path: Path) -> None:
    shape: dict[str, Any] = {"n_layers": 1, "n_experts": 4, "n_experts_used": 2}
    path = write_tiny_gguf(tmp_path / "tiny.gguf", arch="mixtral", tensor_type="F16", **shape)
    expert, read = 2 * 3 * 64 * 128, []
    for slots in (1, 2, 3):
        with LLM.load(path, device="emulator", slots=slots) as llm:
            assert isinstance(llm.transformer, Transformer)
            read.append(step_bytes(llm.transformer, 0))
    assert np.diff(read).tolist() == [2 * expert, 0]  # there are no more than four
    hp = llm.hparams
    others = 2 * (2 * 64 * (hp.q_dim + hp.kv_dim) + hp.vocab_size * 64)
    of_f32 = 4 * (4 * 64 + 2 * 64)  # the router, the norms
    assert read[0] == 2 * expert + others + of_f32


class WrongWhenResident:
    """A decoder whose persistent form gives another token than the one that was chosen."""

    def __init__(self, decoder: Any) -> None:
        self._decoder, self._form = decoder, ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._decoder, name)

    def advance(self, form: Any, *, one_step: bool = False) -> None:
        self._form = form
        self._decoder.advance(form)

    def answers(self) -> list[Answer]:
        found: list[Answer] = self._decoder.answers()
        if self._form != "persistent":
            return found
        return [replace(answer, token_id=answer.token_id ^ 1) for answer in found]


def test_a_wrong_token_is_noticed(ops: GpuOps) -> None:
    model = synthetic_model(ops, SMALL, "F16", n_seqs=1, max_seq_len=16)
    wrong: Any = WrongWhenResident(model.decoder)
    model._decoders[1] = wrong
    with pytest.raises(DeviceError, match="persistent gives other tokens"):
        time_decode(model, ("small", "F16"), "persistent", 0, 4, None)


@pytest.mark.parametrize("name", [name for name in TYPES if name != "Q4_K_M"])
def test_drawn_weights(name: str) -> None:
    """Of the spread that was asked for, around 0."""
    kind = GGMLType[name]
    data = random_blocks(np.random.default_rng(0), kind, 64, 512, 0.02)
    assert data.size == 64 * row_bytes(kind, 512)
    weights = dequantize(kind, data.reshape(64, -1))
    # The scale of MXFP4 is a power of two.
    assert weights.std() == pytest.approx(0.02, rel=0.42 if name == "MXFP4" else 0.1)
    assert abs(weights.mean()) < 0.1 * 0.02


def test_types_of_a_kind() -> None:
    n = SHAPES["1b"].n_layers
    fine = [i for i in range(n) if tensor_type("Q4_K_M", "attn_v", i, n, 2048) == GGMLType.Q6_K]
    assert fine == [0, 1, 4, 7, 10, 13, 14, 15]
    assert tensor_type("Q4_K_M", "output", 0, n, 2048) == GGMLType.Q6_K
    assert tensor_type("Q4_K_M", "ffn_up", 0, n, 2048) == GGMLType.Q4_K
    assert tensor_type("Q4_K", "ffn_up", 0, 30, 576) == GGMLType.Q8_0
    with pytest.raises(RequestError, match="type: expected one of"):
        tensor_type("Q9", "ffn_up", 0, 30, 576)
