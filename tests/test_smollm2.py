"""SmolLM2-135M-Instruct, the real model, against an independent FP32 run of the same file.

tests/goldens/make_smollm2.py made the numbers with HF transformers. The bounds are the project's
promise for each device: `cpu` is FP32 throughout, `cuda` has an FP16 cache.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m40llm import LLM, SamplingParams
from m40llm.device.gpu.ops import GpuOps
from m40llm.engine.sampling import log_softmax
from m40llm.testing.greedy import assert_same_greedy

GOLDENS = json.loads((Path(__file__).parent / "goldens" / "smollm2.json").read_text("utf-8"))


@dataclass(frozen=True)
class Promise:
    """How far a device may be from the FP32 run."""

    device: str
    mean_nll: float
    nll: float  # of any one token
    logit: float  # of the ten best
    gap: float  # between the two best logits, above which the greedy token is the same


DEVICES = [
    pytest.param(Promise("cpu", 1e-4, 2e-3, 1e-3, gap=2e-3), id="cpu"),
    pytest.param(Promise("cuda", 5e-4, 0.05, 0.1, gap=0.05), id="cuda", marks=pytest.mark.gpu),
]


@pytest.fixture(scope="module", params=DEVICES)
def promise(request: pytest.FixtureRequest) -> Promise:
    return request.param


@pytest.fixture(scope="module")
def llm(promise: Promise, smollm2: Path) -> Iterator[LLM]:
    with LLM.load(smollm2, device=promise.device, max_seq_len=2048, decode="host") as llm:
        yield llm


@pytest.mark.parametrize("row", GOLDENS["greedy"], ids=lambda row: row["prompt"][:20])
def test_greedy_stream(llm: LLM, promise: Promise, row: dict[str, Any]) -> None:
    """Identical up to the first near-tie of the reference's, if there is one."""
    n = len(row["ids"])
    n_sure = next((i for i, gap in enumerate(row["gaps"]) if gap <= promise.gap), n)
    params = SamplingParams(temperature=0, max_tokens=n, ignore_eos=True)
    assert llm.generate(row["prompt_ids"], params).ids[:n_sure] == row["ids"][:n_sure]


def test_chat_prompts(llm: LLM) -> None:
    for row in GOLDENS["chat"]:
        assert llm.tokenizer.apply_chat_template(row["messages"]) == row["prompt"]


def test_nll_and_top_logits_of_a_thousand_tokens(llm: LLM, promise: Promise) -> None:
    text = GOLDENS["text"]
    ids = text["ids"]
    logits = llm.logits(ids)
    nll = np.array([-log_softmax(row)[token] for row, token in zip(logits, ids[1:], strict=False)])
    expected = np.array(text["nll"])
    assert len(nll) == 1000
    assert abs(nll.mean() - expected.mean()) < promise.mean_nll
    assert np.abs(nll - expected).max() < promise.nll
    for at, best in text["top10"].items():
        for token_id, value in best:
            assert abs(logits[int(at), token_id] - value) < promise.logit


def test_same_seed_same_text(llm: LLM) -> None:
    params = SamplingParams(max_tokens=12, seed=11)
    assert llm.generate("Once", params).text == llm.generate("Once", params).text


@pytest.mark.gpu
@pytest.mark.parametrize("row", GOLDENS["greedy"][:3], ids=lambda row: row["prompt"][:20])
def test_256_greedy_tokens_as_on_the_cpu(smollm2: Path, row: dict[str, Any]) -> None:
    with (
        LLM.load(smollm2, device="cpu", max_seq_len=512) as cpu,
        LLM.load(smollm2, device="cuda", max_seq_len=512, decode="host") as cuda,
    ):
        assert_same_greedy(cuda, cpu, row["prompt_ids"], 256, gap=0.05)


@pytest.mark.gpu
def test_a_card_with_room_for_a_part_of_it(smollm2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layers that do not fit run on the CPU, and what comes is the same."""
    monkeypatch.setattr(GpuOps, "free_bytes", lambda self: 150_000_000)
    row = GOLDENS["greedy"][0]
    with (
        LLM.load(smollm2, device="cpu", max_seq_len=2048) as cpu,
        LLM.load(smollm2, device="cuda", max_seq_len=2048, gpu_layers="auto") as split,
    ):
        assert [share.device.partition(":")[0] for share in split.plan.shares] == ["cpu", "cuda"]
        assert_same_greedy(split, cpu, row["prompt_ids"], 64, gap=0.05)


def test_the_gpu_kernels_on_the_emulator(smollm2: Path) -> None:
    """The whole model through its kernels for sm_52, on the CPU."""
    limits = {"max_seq_len": 64}
    with (
        LLM.load(smollm2, device="cpu", **limits) as cpu,
        LLM.load(smollm2, device="emulator", **limits) as emulator,
    ):
        ids = cpu.tokenizer.encode("The capital of France is")
        assert_same_greedy(emulator, cpu, ids, 12, gap=0.05)
