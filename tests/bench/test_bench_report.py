"""`m40llm bench report`: what is measured, in fixed times and on the emulator's clock."""

import getpass
import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m40llm.bench import launches as of_launches
from m40llm.bench import report as of_report
from m40llm.bench.beside import beside
from m40llm.bench.budget import Budget
from m40llm.bench.launches import Effort, NotedStep, time_kinds
from m40llm.bench.report import Report, in_a_line
from m40llm.bench.report_file import read_report, write_report
from m40llm.bench.report_model import ModelBench
from m40llm.bench.shapes import SHAPES
from m40llm.bench.synthetic import synthetic_model
from m40llm.bench.timing import HostClock, Times, clock_of
from m40llm.device import open_device
from m40llm.device.emulator.card import EmulatedCard
from m40llm.device.gpu.launches import Launches
from m40llm.device.gpu.ops import GpuOps
from m40llm.errors import DeviceError
from m40llm.kernels.gemm import gemm
from m40llm.model.batch import Batch
from m40llm.model.transformer import Transformer
from m40llm.progress import silent
from m40llm.sm52 import report as projections
from m40llm.sm52.cards import CARDS
from m40llm.sm52.code import Code

FIXED = Times(10.0, 9.0, 12.0, 5)
TINY = (("tiny", "F16"),)


@pytest.fixture
def ops() -> GpuOps:
    found, _ = open_device("emulator")
    assert isinstance(found, GpuOps)
    return found


@pytest.fixture
def model(ops: GpuOps) -> Transformer:
    return synthetic_model(ops, SHAPES["tiny"], "F16", n_seqs=1, max_seq_len=40, max_tokens=16)


@pytest.fixture
def in_fixed_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each launch, and each step, takes 10 us."""
    monkeypatch.setattr(of_launches, "time_in_turn", lambda works, *how: [FIXED for _ in works])


def reported(ops: GpuOps, seconds: float = 600.0) -> tuple[dict[str, Any], list[str]]:
    said: list[str] = []
    report = Report(ops, seconds, say=said.append)
    report.run(TINY)
    return report.document, said


@pytest.mark.usefixtures("in_fixed_time")
def test_a_report(ops: GpuOps, tmp_path: Path) -> None:
    document, said = reported(ops)
    assert document["is_complete"]
    assert (document["skipped"], document["failed"]) == ([], [])
    assert "say nothing of a card" in document["clock"]
    [model] = document["models"]
    assert (model["shape"], model["type"]) == TINY[0]
    assert 0 <= model["largest_logit_error"] < 1e-3
    assert [(s["step"], s["n_context"]) for s in model["steps"]] == [
        *(("decode", 16), ("decode", 24), ("prefill", 0))
    ]
    for step in model["steps"]:
        of_step = [
            row
            for row in model["launches"]
            if (row["step"], row["n_context"]) == (step["step"], step["n_context"])
        ]
        assert sum(row["count"] for row in of_step) == step["n_launches"] == 16
        assert step["tokens_per_s"] == pytest.approx(step["n_tokens"] / 10e-6)
        assert all((row["us"], row["us_p20"], row["us_p80"]) == (10, 9, 12) for row in of_step)
    assert [row["kv"] for row in model["decode"]] == [16, 24]
    assert model["prefill"]["tokens_per_s"] == pytest.approx(16e3 / model["prefill"]["ms"])
    assert any("prefill at " in line for line in said)
    write_report(document, tmp_path / "report.json")
    assert read_report(tmp_path / "report.json") == document


@pytest.mark.usefixtures("in_fixed_time")
def test_launches_are_those_that_are_imagined(ops: GpuOps, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a card with as many multiprocessors: each finds its projection."""
    monkeypatch.setattr(projections, "code_of", lambda *args: Code(64, 0, 1024, None))
    document, _ = reported(ops)
    found = beside(document, replace(CARDS["m40-12"], n_sms=ops.card.n_sms), None)
    assert len(found["kernels"]) == len(document["models"][0]["launches"])
    assert all(row["projected"] for row in (*found["kernels"], *found["rates"]))


@pytest.mark.usefixtures("in_fixed_time")
def test_nothing_tells_whose_it_is(ops: GpuOps) -> None:
    text = json.dumps(reported(ops)[0])
    for secret in (socket.gethostname(), getpass.getuser(), str(Path.home()), str(Path.cwd())):
        assert f'"{secret}' not in text
        assert len(secret) < 6 or secret not in text


class TimedCard(EmulatedCard):
    """A card whose events tell time: a microsecond passes from one to the next."""

    name = "timed:0"

    def __init__(self) -> None:
        super().__init__(checks=False)
        self._ms = 0.0

    def event(self) -> Any:
        self._ms += 1e-3
        return self._ms

    def elapsed_ms(self, start: float, stop: float) -> float:
        return stop - start


def test_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"name": "Timed", "n_sms": 2, "l2_bytes": 2**20}
    monkeypatch.setattr(of_report, "facts_of", lambda card: facts)
    monkeypatch.setattr(of_report, "_READ_BYTES", 2**18)
    monkeypatch.setattr(of_report, "flops_per_s", lambda *args: (6.5e12, ""))
    monkeypatch.setattr("m40llm.bench.timing.MAX_REPLAYS", 2)
    said: list[str] = []
    report = Report(GpuOps(TimedCard()), 600.0, say=said.append)
    monkeypatch.setattr(report, "_model", lambda *args: None)
    report.run()
    found = report.document["ceilings"]
    assert report.document["failed"] == []
    assert report.document["clock"] == "CUDA events"
    assert found["read_gb_per_s"] == pytest.approx(2**18 / 1e3)  # in a microsecond
    assert found["fp32_tflop_per_s"] == 6.5
    assert found["empty_launch_us"] == pytest.approx(1 / 128)  # two replays of 64
    assert said == ["reads 262 GB/s, 6.50 TFLOP/s of FP32, 0.0 us for an empty launch of a graph"]


def test_ceilings_that_are_wrong_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*args: Any) -> None:
        raise DeviceError("reading: 8 blocks add up to 1, not 2")

    monkeypatch.setattr(of_report, "facts_of", lambda card: {"name": "Timed"})
    monkeypatch.setattr(of_report, "read_bytes_per_s", wrong)
    report = Report(GpuOps(TimedCard()), 600.0, say=lambda line: None)
    monkeypatch.setattr(report, "_model", lambda *args: None)
    report.run()
    [failure] = report.document["failed"]
    assert failure["what"] == "ceilings"
    assert set(report.document["ceilings"].values()) == {None}


def test_paths_are_taken_out() -> None:
    told = "OSError: cannot read '/home/me/x.py', C:\\Users\\me, ~/cache; 3 GB/s of 2/3"
    assert in_a_line(told) == "OSError: cannot read '<path>', <path>, <path>; 3 GB/s of 2/3"
    assert in_a_line("one\n  two\x1b[31m") == "one two [31m"
    assert in_a_line("x" * 501) == "x" * 497 + "..."


def test_prefill_and_decode_that_differ_are_not_timed(ops: GpuOps) -> None:
    def wrong(w: Any, x: Any, out: Any, **how: Any) -> None:
        gemm(w, x, out, **how)
        ops.card.write(out[:, :1], np.full((out.shape[0], 1), 50, np.float32))

    ops.launches = Launches(gemm=wrong)
    document, _ = reported(ops)
    [failure] = document["failed"]
    assert failure["what"] == "tiny F16, verify"
    assert "behind 16 tokens prefill and decode differ by" in failure["why"]
    [model] = document["models"]
    assert (model["steps"], model["launches"], model["decode"]) == ([], [], [])
    assert document["is_complete"]


def test_a_step_that_changes_is_noticed(model: Transformer) -> None:
    step = NotedStep(model, Batch.decode([(0, 20, 5)], 1))
    step.check()
    step.logits = step.logits + 1
    with pytest.raises(DeviceError, match="give other logits than before"):
        step.check()
    with pytest.raises(DeviceError, match="as a graph"):
        step.time(2)


def test_noting_leaves_the_ops_as_they_were(model: Transformer) -> None:
    ops = model.ops
    assert isinstance(ops, GpuOps)
    before = ops.card, ops.launches
    step = NotedStep(model, Batch.decode([(0, 20, 5)], 1))
    assert (ops.card, ops.launches) == before
    kinds = {(what.kernel.name, what.operand): noted for what, noted in step.kinds().items()}
    assert len(kinds["gemv", "F16 256 x 128"]) == 2  # gate and up
    ops.launches = Launches(gemv=lambda *args, **how: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        NotedStep(model, Batch.decode([(0, 20, 5)], 1))
    assert ops.card is before[0]


def test_activations_are_timed_beside_their_gate(model: Transformer) -> None:
    """Made of their own results over and over, they would end at infinity or at 0."""
    step = NotedStep(model, Batch.decode([(0, 20, 5)], 1))
    [gated] = [n for n in step.noted if n.what.kernel.name == "gated_activation"]
    assert gated.replaced == "out"
    apart = gated.with_argument("out", np.zeros_like(gated.named["out"]))
    assert apart.replaced == ""
    assert apart.named["gate"] is gated.named["gate"]
    assert {n.replaced for n in step.noted if n is not gated} == {""}


@pytest.mark.usefixtures("in_fixed_time")
def test_what_is_in_turn(model: Transformer) -> None:
    step = NotedStep(model, Batch.decode([(0, 20, 5)], 1))
    rows = time_kinds(step, Effort(2, 2, 2), l2_bytes=40_000, tell=silent)
    by_operand = {row["operand"]: row for row in rows}
    gate, output = by_operand["F16 256 x 128"], by_operand["F16 300 x 128"]
    assert (gate["n_in_turn"], output["n_in_turn"]) == (2, 1)
    assert gate["n_bytes"] == 2 * 256 * 128 + 4 * (256 + 128)
    assert (gate["is_cold"], output["is_cold"]) == (True, False)
    assert time_kinds(step, Effort(2, 2, 2), None, silent)[0]["is_cold"] is None


def test_the_hosts_clock(ops: GpuOps) -> None:
    clock = clock_of(ops.card)
    assert isinstance(clock, HostClock)
    assert clock.elapsed_ms(1.0, 1.5) == 500


def test_what_does_not_fit_is_left_out(ops: GpuOps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "free_bytes", lambda: 10**6)
    document, said = reported(ops)
    [skipped] = document["skipped"]
    assert skipped["what"] == "tiny F16"
    assert "GB, 0.0 GB are free" in skipped["why"]
    assert said == [f"tiny F16: left out: {skipped['why']}"]
    assert document["models"] == []


def test_what_has_no_time_is_left_out(ops: GpuOps, monkeypatch: pytest.MonkeyPatch) -> None:
    document, _ = reported(ops, seconds=1.0)
    assert document["skipped"] == [{"what": "tiny F16", "why": "it may take 20 s, 1 s are left"}]
    monkeypatch.setitem(of_report.GUESSES, "launches", 1e6)
    monkeypatch.setattr(ModelBench, "decode", lambda *args: {"tokens_per_s": 1.0, "form": "graph"})
    document, _ = reported(ops)
    [skipped] = document["skipped"]
    assert skipped["what"] == "tiny F16, launches"
    [model] = document["models"]
    assert [step["step"] for step in model["steps"]] == ["prefill"]


def test_a_failure_is_part_of_the_report(ops: GpuOps, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise ValueError("no such /home/somebody/file")

    monkeypatch.setattr(ModelBench, "step", fail)
    document, said = reported(ops)
    assert [failure["what"] for failure in document["failed"]] == [
        *("tiny F16, launches", "tiny F16, prefill")
    ]
    assert document["failed"][0]["why"] == "ValueError: no such <path>"
    assert "this is a bug of ours: please send the report" in said
    assert len(document["models"][0]["decode"]) == 2


def test_an_interruption_leaves_what_was_measured(
    ops: GpuOps, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ModelBench, "prefill", interrupt)
    report = Report(ops, 600.0, say=lambda line: None)
    with pytest.raises(KeyboardInterrupt):
        report.run(TINY)
    document = report.document
    assert not document["is_complete"]
    assert document["seconds"] > 0
    assert [step["step"] for step in document["models"][0]["steps"]] == ["decode", "decode"]


def test_the_budget() -> None:
    """A stage that fails says nothing of how long it takes."""
    now = [100.0]

    def failing() -> None:
        raise ZeroDivisionError

    budget = Budget(60.0, {"make": 20.0, "verify": 50.0}, now=lambda: now[0])
    assert budget.why_not("make", 40.0) == ""
    assert budget.why_not("make", 41.0) == "it may take 61 s, 60 s are left"
    with budget.spend("make", 10.0):
        now[0] += 15.0
    assert (budget.spent, budget.left) == (15.0, 45.0)
    assert budget.why_not("make", 40.0) == ""  # 5 s beside what was reckoned
    assert budget.why_not("verify") == "it may take 50 s, 45 s are left"
    with pytest.raises(ZeroDivisionError), budget.spend("verify"):
        failing()
    assert budget.why_not("verify") == "it may take 50 s, 45 s are left"
    with budget.spend("verify"):
        now[0] += 30.0
    assert budget.why_not("verify") == "it may take 30 s, 15 s are left"
    with budget.spend("make", 10.0):  # quicker than reckoned: what was seen stays
        now[0] += 1.0
    assert budget.why_not("make", 9.0) == ""
    assert budget.why_not("make", 10.0) == "it may take 15 s, 14 s are left"


@pytest.mark.gpu
def test_a_card(tmp_path: Path) -> None:
    """Ceilings, and a small model's decode steps, prefill and launches."""
    ops, _ = open_device("cuda")
    assert isinstance(ops, GpuOps)
    report = Report(ops, 300.0, say=lambda line: None)
    report.run((("135m", "Q8_0"),))
    document = report.document
    assert document["failed"] == []
    assert document["ceilings"]["read_gb_per_s"] > 10
    assert document["ceilings"]["fp32_tflop_per_s"] > 0.1
    assert 0 < document["ceilings"]["empty_launch_us"] < 100
    assert document["card"]["n_sms"] == ops.card.n_sms
    assert document["card"]["memory_bytes"] > 2**30
    assert document["card"]["l2_bytes"] > 0
    [model] = document["models"]
    assert len(model["steps"]) == 3
    for step in model["steps"]:
        of_step = [
            row
            for row in model["launches"]
            if (row["step"], row["n_context"]) == (step["step"], step["n_context"])
        ]
        assert sum(row["count"] for row in of_step) == step["n_launches"]
        # One after another, or each kind by itself: about the same.
        apart = sum(row["count"] * row["us"] for row in of_step) / 1e3
        assert apart / 3 < step["ms"] < 3 * apart
    write_report(document, tmp_path / "report.json")
    assert read_report(tmp_path / "report.json") == document
