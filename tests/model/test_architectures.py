"""Every architecture against HF transformers: tiny models whose logits it computed in FP64."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m40llm.device.cpu.ops import CpuOps
from m40llm.model.arch import ARCHITECTURES
from m40llm.model.batch import Batch
from m40llm.model.hparams import HParams
from m40llm.model.program import why_never
from m40llm.model.rope_params import RopeParams
from m40llm.model.transformer import Transformer
from m40llm.testing.noisy_ops import NoisyOps, NoisyTables
from m40llm.testing.reference_ops import ReferenceOps

_PATH = Path(__file__).parents[1] / "goldens" / "architectures.json"
_DOCUMENT = json.loads(_PATH.read_text(encoding="utf-8"))
COLUMNS, MODELS = _DOCUMENT["columns"], _DOCUMENT["models"]
Tiny = Callable[..., Transformer]


def logits_of(model: Transformer, ids: list[int]) -> Any:
    return model.ops.read(model.forward(Batch.of((0, 0, ids), logits="all")))


def spread(make: Callable[[int], Transformer], ids: list[int], exact: Any) -> float:
    """Four noisy runs show it; the true error is one more draw of it, so twice the widest."""
    return 2 * max(float(np.abs(logits_of(make(seed), ids) - exact).max()) for seed in range(4))


@pytest.fixture(params=MODELS)
def golden(request: pytest.FixtureRequest) -> Any:
    return MODELS[request.param]


def test_each_has_a_golden() -> None:
    assert {golden["shape"]["arch"] for golden in MODELS.values()} >= set(ARCHITECTURES)


def test_logits_of_64_positions(golden: dict[str, Any], tiny: Tiny) -> None:
    ids, shape = golden["ids"], golden["shape"]
    theirs = np.array(golden["logits"])
    exact = logits_of(tiny(ReferenceOps(), **shape), ids)
    of_tables = spread(lambda seed: tiny(NoisyTables(seed), **shape), ids, exact)
    of_fp32 = spread(lambda seed: tiny(NoisyOps(seed), **shape), ids, exact)
    assert np.abs(exact[:, COLUMNS] - theirs).max() <= of_tables < 0.01 * theirs.std()
    got = logits_of(tiny(CpuOps(), **shape), ids)
    assert np.abs(got[:, COLUMNS] - theirs).max() <= of_fp32


def test_greedy_stream(golden: dict[str, Any], tiny: Tiny) -> None:
    model, ids = tiny(CpuOps(), **golden["shape"]), list(golden["ids"])
    row = logits_of(model, ids)[-1]
    for token in golden["greedy"]:
        assert row.argmax() == token
        row = model.ops.read(model.forward(Batch.of((0, len(ids), [token]))))[0]
        ids.append(token)


def test_ragged_prefill_is_one_by_one(golden: dict[str, Any], tiny: Tiny) -> None:
    ids, shape, lengths = golden["ids"], golden["shape"], (9, 1, 30)
    prompts = [ids[s : s + n] for s, n in enumerate(lengths)]
    model = tiny(CpuOps(), n_seqs=3, **shape)
    batch = Batch.of(*((s, 0, prompt) for s, prompt in enumerate(prompts)))
    together = model.ops.read(model.forward(batch))
    for row, prompt in zip(together, prompts, strict=True):
        exact = logits_of(tiny(ReferenceOps(), **shape), prompt)
        bound = spread(lambda seed: tiny(NoisyOps(seed), **shape), prompt, exact)
        assert np.abs(row - exact[-1]).max() <= bound


GEMMA = HParams(
    arch="gemma", context_length=1, vocab_size=1, n_layers=26, n_embd=5376, n_ff=1,
    n_heads=32, n_kv_heads=16, head_dim=256, norm_eps=1e-6, rope=RopeParams(256),
)  # fmt: skip


@pytest.mark.parametrize(
    ("arch", "n_layers", "n_embd", "width"),
    [
        ("gemma3", 26, 5376, 256),
        ("gemma3", 62, 5376, 168),
        ("gemma2", 42, 4608, 256),
        ("gemma2", 46, 4608, 144),
    ],
)
def test_the_scale_of_the_largest_gemma(arch: str, n_layers: int, n_embd: int, width: int) -> None:
    hp = replace(GEMMA, n_layers=n_layers, n_embd=n_embd)
    assert ARCHITECTURES[arch].score_scale(hp) == pytest.approx(width**-0.5)


def test_what_gemma2_files_leave_out() -> None:
    arch = ARCHITECTURES["gemma2"]
    assert arch.softcaps(GEMMA) == (50.0, 30.0)
    assert arch.softcaps(replace(GEMMA, attn_softcap=0.0, logit_softcap=20.0)) == (0.0, 20.0)
    assert [arch.window_of(layer, GEMMA) for layer in range(4)] == [4096, 0, 4096, 0]
    assert arch.window_of(2, replace(GEMMA, sliding_window=12)) == 12


@pytest.mark.parametrize("key", ["attn_logit_softcapping", "final_logit_softcapping"])
def test_each_soft_cap_of_the_tiny_model_is_felt(key: str, tiny: Tiny) -> None:
    """Without it the logits are others, by a thousand times what rounding explains."""
    golden = MODELS["gemma2"]
    shape, theirs = golden["shape"], np.array(golden["logits"])
    without = shape["metadata"] | {f"gemma2.{key}": 0.0}
    exact = logits_of(tiny(ReferenceOps(), **{**shape, "metadata": without}), golden["ids"])
    assert np.abs(exact[:, COLUMNS] - theirs).max() > 0.1 * theirs.std()


def test_no_program_knows_soft_caps(tiny: Tiny) -> None:
    model = tiny(metadata={"llama.final_logit_softcapping": 30.0})
    reason = why_never(model.arch, model.hp)
    assert reason == "llama has soft caps, which the decode program does not know yet"
