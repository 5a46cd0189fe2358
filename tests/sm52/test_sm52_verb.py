"""`m40llm sm52`: what it prints. All kernels have one code here: a model's take a minute."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gguf import GGMLQuantizationType as GGMLType
from typer.testing import CliRunner

from m40llm.bench.shapes import SHAPES
from m40llm.cli import sm52 as verb
from m40llm.cli.app import app
from m40llm.sm52 import report
from m40llm.sm52.cards import CARDS
from m40llm.sm52.code import Code
from m40llm.sm52.counting import Counted
from m40llm.sm52.sass import parse
from m40llm.testing import write_tiny_gguf
from m40llm.testing.hollow import write_hollow_gguf

LISTING = f"""
.L_x_0:
        /*0010*/                   LDG.E.128 R4, [R2] ;
        {"/*0018*/                 FFMA R0, R4, R4, R0 ;".join([chr(10)] * 31)}
        /*0200*/              @!P0 BRA `(.L_x_0) ;
        /*0208*/                   EXIT ;
"""
Run = Callable[..., Any]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Llama 3.1 8B in Q8_0, without weights."""
    path = tmp_path_factory.mktemp("model") / "8b.gguf"
    return str(write_hollow_gguf(path, SHAPES["8b"], GGMLType.Q8_0))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The verb, on a machine with a disassembler."""

    def code_of(kernel: Any, arg_types: Any, capability: Any, tool: Path | None) -> Code:
        return Code(64, 0, 1024, parse(LISTING) if tool else None)

    monkeypatch.setattr(report, "code_of", code_of)
    monkeypatch.setattr("m40llm.sm52.disassembler.find_disassembler", lambda: Path("nvdisasm"))
    monkeypatch.setenv("M40LLM_HOME", str(tmp_path))
    return lambda *args: CliRunner().invoke(app, ["sm52", *args])


def test_cards_are_those_of_the_package() -> None:
    assert tuple(CARDS) == verb._CARDS


def test_json(run: Run, model: str) -> None:
    result = run("--model", model, "--card", "m40-12", "--context", "1000", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["card"] == "Tesla M40 12 GB"
    assert document["fits"]
    assert "projected, not measured" in document["what"]
    decode, prefill = document["decode"], document["prefill"]
    assert (decode["n_tokens"], decode["n_context"], prefill["n_tokens"]) == (1, 1000, 512)
    # 7.5 GB of matrices: 31 to 46 ms of the memory, and 391 gaps.
    low, high = decode["ms"]
    assert 31 < low < 34
    assert 46 < high < 60
    assert decode["tokens_per_s"] == [pytest.approx(1e3 / high), pytest.approx(1e3 / low)]
    rows = document["kernels"]
    assert sum(row["count"] for row in rows) == decode["n_launches"] + prefill["n_launches"]
    gate = next(row for row in rows if row["operand"] == "Q8_0 14336 x 4096")
    assert (gate["kernel"], gate["count"], gate["n_warps"]) == ("gemv", 64, 32)
    assert (gate["loop_instructions"], gate["ffma_share"]) == (32, 30 / 32)
    assert gate["bound"] == "memory"
    assert decode["gap_ms"] == pytest.approx([391 * 0.5e-3, 391 * 5e-3])
    assert document["has_persistent"]


def test_table(run: Run, model: str) -> None:
    result = run("--model", model)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "Tesla M40 24 GB, projected, not measured: docs/sm52.md"
    assert re.match(r"what fits: .* GB \(weights 8\.53 GB, .*\)$", lines[1])
    assert [line.split(" tokens:")[0] for line in lines if " tokens: " in line] == [
        "decode behind 512",
        "prefill of 512",
    ]
    assert any(line.startswith("  of these ") and "are gaps" in line for line in lines)
    (gate,) = [line for line in lines if "gemv" in line and "14336 x 4096" in line]
    assert gate.split()[3:] == [
        *("64", "gemv", "Q8_0", "14336", "x", "4096", "memory"),
        *("64", "0", "1.0", "kB", "32", "(registers)", "32", "94%", "-", "-"),
    ]


def test_a_model_of_which_some_layers_fit(run: Run, tmp_path: Path) -> None:
    """16 GB on a card of 12: the times of the card's layers, and no rate of the whole."""
    path = str(write_hollow_gguf(tmp_path / "f16.gguf", SHAPES["8b"], GGMLType.F16))
    result = run("--model", path, "--card", "m40-12")
    assert result.exit_code == 0, result.output
    assert re.search(
        r"\): (\d+) of 32 layers on the card, whose times these are; what the CPU", result.stdout
    )
    assert "tokens/s" not in result.stdout
    assert "gaps" not in result.stdout, "with layers on the CPU nothing is persistent"
    document = json.loads(run("--model", path, "--card", "m40-12", "--json").stdout)
    assert not document["fits"]
    assert 16 < document["n_card_layers"] < document["n_layers"] == 32
    assert document["decode"]["tokens_per_s"] is None
    rows = [row for row in document["kernels"] if row["step"] == "decode"]
    (attention,) = (row for row in rows if row["kernel"] == "attention_decode")
    assert attention["count"] == document["n_card_layers"]


def test_a_model_that_does_not_fit_at_all(
    run: Run, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = replace(CARDS["m40-12"], memory_bytes=400 << 20)
    monkeypatch.setattr("m40llm.sm52.cards.card_of", lambda name: small)
    result = run("--model", model)
    assert result.exit_code == 0, result.output
    assert "no layers, beside a useful context, so no times" in result.stdout
    assert "decode behind" not in result.stdout


def test_a_model_with_experts(run: Run, tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", arch="mixtral", tensor_type="F16")
    result = run("--model", str(path), "--prompt", "64")
    assert result.exit_code == 0, result.output
    assert "2 of 8" in result.stdout
    assert "gaps" not in result.stdout, "experts have no persistent form"


def test_what_is_counted(run: Run, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "counted", lambda launch: Counted(12.5, 2.0))
    result = run("--model", model, "--count")
    assert result.exit_code == 0, result.output
    (gate,) = [a for a in result.stdout.splitlines() if "gemv" in a and "14336 x 4096" in a]
    assert gate.split()[-3:] == ["94%", "12.5", "2.0"]
    row = json.loads(run("--model", model, "--count", "--json").stdout)["kernels"][0]
    assert (row["sectors"], row["wavefronts"]) == (12.5, 2.0)
    assert json.loads(run("--model", model, "--json").stdout)["kernels"][0]["sectors"] is None


def test_without_a_disassembler(run: Run, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so, and what --fetch would get; nothing is fetched unless asked."""
    monkeypatch.setattr("m40llm.sm52.disassembler.find_disassembler", lambda: None)
    monkeypatch.setattr("m40llm.hub.tools.pull_alias", lambda *a, **k: pytest.fail("fetched"))
    result = run("--model", model, "--json")
    assert result.exit_code == 0, result.output
    assert "note: no nvdisasm in M40LLM_NVDISASM, PATH or CUDA_HOME" in result.stderr
    assert "triton==3.1.0: 210 MB to fetch, 51 MB to keep" in result.stderr
    row = json.loads(result.stdout)["kernels"][0]
    assert (row["bound"], row["loop_instructions"], row["ffma_share"]) == ("memory", None, None)


def test_fetch_says_what_it_fetches(
    run: Run, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = tmp_path / "nvdisasm"
    fetched.write_bytes(b"")
    monkeypatch.setattr("m40llm.sm52.disassembler.find_disassembler", lambda: None)
    monkeypatch.setattr("m40llm.hub.tools.pull_alias", lambda *args, **how: fetched)
    result = run("--model", model, "--fetch", "--json")
    assert result.exit_code == 0, result.output
    assert "fetching NVIDIA's disassembler, of CUDA 12.4, out of the wheel" in result.stderr
    assert json.loads(result.stdout)["kernels"][0]["loop_instructions"] == 32


def test_without_a_compiler(run: Run, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    why = "numba-cuda is not installed: pip install it"
    monkeypatch.setattr("m40llm.device.numba_cuda.numba_cuda_problem", lambda: why)
    result = run("--model", model)
    assert result.exit_code == 1
    assert result.stderr == f"error: kernels cannot be compiled: {why}\n"


def test_usage(run: Run, model: str) -> None:
    result = run("--model", model, "--card", "k80")
    assert result.exit_code == 2
    assert "expected m40-24, m40-12, p40, titan-x, h100, h200, got 'k80'" in result.stderr
    assert run().exit_code == 2


def test_a_chart_of_nowhere_is_said_before_anything_is_projected(
    run: Run, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(report, "code_of")  # which a projection would ask for
    for place, said in ((tmp_path / "none" / "where", "no folder"), (Path(), "name of a picture")):
        result = run("--model", model, "--chart", str(place))
        assert (result.exit_code, said in result.stderr) == (1, True), result.output


def test_chart(run: Run, model: str, tmp_path: Path) -> None:
    result = run("--model", model, "--chart", str(tmp_path / "where"))
    assert result.exit_code == 0, result.output
    assert {path.suffix for path in tmp_path.glob("where.*")} == {".png", ".svg"}
    assert "where.png" in result.output
