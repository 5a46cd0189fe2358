"""What fits a card, on files of real shapes that hold no weights: nothing here is ever loaded."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from gguf import GGMLQuantizationType as GGMLType
from typer.testing import CliRunner

from m40llm import LLM
from m40llm.bench.shapes import SHAPES
from m40llm.cli.app import app
from m40llm.device.cpu.ops import CpuOps
from m40llm.device.gpu.ops import GpuOps
from m40llm.errors import DeviceError, RequestError
from m40llm.gguf import open_gguf
from m40llm.llm.cards import M40S, on_cards
from m40llm.llm.fit import SPARE, plan_memory
from m40llm.llm.plan import size
from m40llm.model.hparams import HParams
from m40llm.model.rope_params import RopeParams
from m40llm.testing import write_tiny_gguf
from m40llm.testing.greedy import assert_same_greedy
from m40llm.testing.hollow import write_hollow_gguf

DOCS = (Path(__file__).parents[2] / "docs" / "memory.md").read_text(encoding="utf-8")
# Qwen 2.5 14B.
QWEN_14B = HParams(
    arch="qwen2", context_length=32768, vocab_size=152064, n_layers=48, n_embd=5120, n_ff=13824,
    n_heads=40, n_kv_heads=8, head_dim=128, norm_eps=1e-6,
    rope=RopeParams(rope_dim=128, theta=1e6),
)  # fmt: skip
MODELS = {"Llama 3.1 8B": SHAPES["8b"], "Qwen 2.5 14B": QWEN_14B}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("m")
    return {
        name: write_hollow_gguf(folder / f"{at}.gguf", hp, GGMLType.Q8_0)
        for at, (name, hp) in enumerate(MODELS.items())
    }


def rows(files: dict[str, Path]) -> list[str]:
    """The table in docs/memory.md."""
    found = []
    for name, path in files.items():
        with open_gguf(path) as file:
            for card in on_cards(file, HParams.from_gguf(file)):
                assert card.best
                there = card.best.shares[-1]
                contexts = [f"{n:,}" if n else "none" for n in card.contexts.values()]
                found.append(
                    f"| {name} | {card.card} | {size(card.free)} | "
                    f"{len(there.part.layers)} of {there.part.n_layers} | {size(there.weights)} | "
                    f"{card.best.max_seq_len:,} {card.best.kv_type} | {size(there.cache)} | "
                    f"{size(there.workspace)} | {' | '.join(contexts)} |"
                )
    return found


def test_the_figures_in_the_docs(files: dict[str, Path]) -> None:
    assert re.findall(r"^\| (?:Llama|Qwen).*\|$", DOCS, re.MULTILINE) == rows(files)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> GpuOps:
    """An emulator with the free memory of a 12 GB M40, beside a CPU with plenty."""
    from m40llm.device import open_device

    monkeypatch.setattr(GpuOps, "free_bytes", lambda self: M40S["M40 12 GB"])
    monkeypatch.setattr(CpuOps, "free_bytes", lambda self: 1 << 40)
    ops = open_device("emulator")[0]
    assert isinstance(ops, GpuOps)
    return ops


def plan(ops: Any, path: Path, max_seq_len: int | None = None, **how: Any) -> Any:
    with open_gguf(path) as file:
        return plan_memory(ops, file, HParams.from_gguf(file), max_seq_len, **how)


def test_fit_fills_the_card(card: GpuOps, files: dict[str, Path]) -> None:
    """By the longest context, in steps of 256 tokens; without it, half and half again."""
    free, path = M40S["M40 12 GB"], files["Llama 3.1 8B"]
    limit = free - free // SPARE
    filled, halved = plan(card, path, fit=True), plan(card, path)
    assert filled.max_seq_len % 256 == 0
    assert filled.max_seq_len > halved.max_seq_len >= 8192
    assert filled.total <= limit < plan(card, path, filled.max_seq_len + 256).total
    assert filled.placement == "32 of 32 layers on emulator"
    told = filled.chosen
    assert told.startswith(f"context of {filled.max_seq_len:,} tokens, cache in {filled.kv_type}: ")
    assert f"{size(filled.total)} (weights {size(filled.weights)}" in told
    assert told.endswith(f"{size(free)} free on emulator")


def test_fit_takes_q8_0_where_f16_leaves_no_useful_context(
    card: GpuOps, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not before. From 512 tokens on, each takes as much as the one before it."""
    path, longest, found = files["Llama 3.1 8B"], {}, {}
    for free in range(9_200_000_000, 11_000_000_000, 200_000_000):
        monkeypatch.setattr(GpuOps, "free_bytes", lambda self: 1 << 40)
        for kv_type in ("f16", "q8_0"):
            base, more = (plan(card, path, n, kv_type=kv_type).total for n in (512, 1024))
            n_more = (free - free // SPARE - base) // ((more - base) // 512)
            longest[kv_type] = (512 + n_more) // 256 * 256
        monkeypatch.setattr(GpuOps, "free_bytes", lambda self, free=free: free)
        made = plan(card, path, fit=True)
        assert made.kv_type == ("f16" if longest["f16"] >= 8192 else "q8_0")
        assert made.max_seq_len == longest[made.kv_type]
        for kv_type, length in longest.items():  # which is kept where it is asked for
            asked = plan(card, path, fit=True, kv_type=kv_type)
            assert (asked.kv_type, asked.max_seq_len) == (kv_type, length)
        found[made.kv_type] = made.chosen
    assert set(found) == {"f16", "q8_0"}
    assert "tokens in q8_0, workspace" in found["q8_0"]


def test_a_form_of_the_device_keeps_f16(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Between what a cache in q8_0 takes and what one in f16 does, `fit` would take q8_0."""
    path = write_tiny_gguf(tmp_path / "tiny.gguf", head_dim=64, context_length=4096)
    with LLM.load(path, device="emulator") as llm:
        free = llm.plan.total
    monkeypatch.setattr(GpuOps, "free_bytes", lambda self: free)
    with LLM.load(path, device="emulator", fit=True) as llm:
        assert (llm.plan.kv_type, llm.decode_form) == ("q8_0", "host")
    with LLM.load(path, device="emulator", fit=True, decode="eager") as llm:
        assert (llm.plan.kv_type, llm.decode_form) == ("f16", "eager")
        assert llm.max_seq_len < 4096


def test_q8_0_is_not_for_one_layer_more(card: GpuOps, files: dict[str, Path]) -> None:
    made = plan(card, files["Qwen 2.5 14B"], fit=True, gpu_layers="auto")
    assert (made.kv_type, len(made.shares)) == ("f16", 2)


def test_heads_that_q8_0_cannot_hold(card: GpuOps, tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", head_dim=80)
    assert plan(card, path, fit=True).kv_type == "f16"
    with open_gguf(path) as file:
        contexts = on_cards(file, HParams.from_gguf(file))[0].contexts
    assert contexts == {"f16": 128, "q8_0": None}


def test_fit_takes_the_whole_context_where_it_fits(card: GpuOps, tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", context_length=1000)
    assert plan(card, path, fit=True).max_seq_len == 1000


def test_auto_takes_layers_off_rather_than_useful_context(
    card: GpuOps, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    free, path = M40S["M40 12 GB"], files["Qwen 2.5 14B"]
    auto = plan(card, path, gpu_layers="auto")
    on_host, there = auto.shares
    n = len(there.part.layers)
    assert (on_host.device, there.device) == ("cpu", "emulator")
    with monkeypatch.context() as patch:
        patch.setattr(GpuOps, "free_bytes", lambda self: 1 << 40)
        one_more = plan(card, path, auto.max_seq_len, gpu_layers=n + 1).shares[1].total
    assert there.total <= free - free // SPARE < one_more
    assert auto.max_seq_len >= 8192
    both = plan(card, path, gpu_layers="auto", fit=True)
    assert len(both.shares[1].part.layers) == n
    assert both.max_seq_len >= auto.max_seq_len
    short = plan(card, path, 512, gpu_layers="auto")
    assert short.max_seq_len == 512
    assert len(short.shares[1].part.layers) > n
    with pytest.raises(DeviceError, match=rf"with gpu_layers={n} \(--gpu-layers {n}, or auto\)"):
        plan(card, path)
    small = plan(card, files["Llama 3.1 8B"], gpu_layers="auto")
    assert small.placement == "32 of 32 layers on emulator"
    monkeypatch.setattr(GpuOps, "free_bytes", lambda self: 100_000_000)
    assert plan(card, path, gpu_layers="auto").placement == "48 of 48 layers on cpu"


def test_refused(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    with pytest.raises(RequestError, match="fit: it chooses the context; expected no max_seq_len"):
        LLM.load(path, device="cpu", fit=True, max_seq_len=64)


def test_a_model_that_was_fitted_holds_what_was_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In q8_0, in two stages, to the byte."""
    path = write_tiny_gguf(
        tmp_path / "tiny.gguf", n_layers=3, head_dim=64, context_length=128, n_kv_heads=4
    )
    with LLM.load(path, device="emulator", kv_type="q8_0", gpu_layers=2) as llm:
        needed = llm.plan.shares[1].total
    monkeypatch.setattr(GpuOps, "free_bytes", lambda self: needed * SPARE // (SPARE - 1) + 2)
    with LLM.load(path, device="emulator", fit=True, gpu_layers=2) as llm:
        assert (llm.plan.kv_type, llm.max_seq_len) == ("q8_0", 128)
        for stage, share in zip(llm.transformer.stages, llm.plan.shares, strict=True):
            held = [part for c in (stage.kv.k, stage.kv.v) for part in (c.quants, c.scales)]
            assert sum(part.nbytes for part in held) == share.cache
        with LLM.load(path, device="cpu", kv_type="q8_0") as cpu:
            assert_same_greedy(llm, cpu, [1, 7, 9, 20], 6, gap=0.05)


def test_fit_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tiny_gguf(tmp_path / "long.gguf", context_length=1 << 20)
    monkeypatch.setattr(CpuOps, "free_bytes", lambda self: 20_000_000)
    with LLM.load(path, device="cpu", fit=True) as llm, LLM.load(path, device="cpu") as halved:
        assert halved.max_seq_len < llm.max_seq_len
        assert llm.plan.total <= 19_375_000 < llm.plan.total * (1 + 256 / llm.max_seq_len)
        assert len(llm.generate([1, 2, 3]).ids)


def test_what_is_kept_free_is_told(card: GpuOps, files: dict[str, Path]) -> None:
    told = r"device 'emulator' has 11\.81 GB free \(1/32 of it to be kept\); with gpu_layers=32 "
    with pytest.raises(DeviceError, match=told):
        plan(card, files["Qwen 2.5 14B"], fit=True)


def test_info_shows_what_fits(files: dict[str, Path]) -> None:
    path = str(files["Qwen 2.5 14B"])
    result = CliRunner().invoke(app, ["info", path, "--json"])
    small, large = json.loads(result.stdout)["cards"]
    assert (small["card"], large["card"]) == ("M40 12 GB", "M40 24 GB")
    assert small["plan"]["gpu_layers"] < large["plan"]["gpu_layers"] == 48
    assert small["max_seq_len"]["f16"] is None
    taken = sum(small["plan"][f"{what}_bytes"] for what in ("weights", "kv", "workspace"))
    assert taken <= small["free_bytes"]
    text = CliRunner().invoke(app, ["info", path]).stdout
    assert f"{small['plan']['gpu_layers']} of 48" in text
    assert "M40 24 GB" in text
