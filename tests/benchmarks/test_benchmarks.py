"""Every kernel has a test and a benchmark; every benchmark verifies on the emulator."""

import ast
import importlib
import json
from pathlib import Path
from typing import Any

import harness
import numpy as np
import pytest
import run_all
from cases import Case, Row, poison
from ceilings import Ceiling, Ceilings, measure_copy, measure_fma, measure_read
from fake_card import FakeCard
from harness import Bench, VerificationError, set_count

import m40llm
from m40llm.bench.timing import times_of
from m40llm.errors import DeviceError
from m40llm.kernels.contract import Launcher
from m40llm.kernels.softmax import softmax

KERNELS = Path(m40llm.__file__).parent / "kernels"
TESTS = Path(__file__).parents[1] / "kernels"
BENCHMARKS = Path(harness.__file__).parent
CEILINGS = Ceilings(
    read=Ceiling("read", 1e12, "a test"),
    copy=Ceiling("copy", 5e11, "a test"),
    fma=Ceiling("fma", 1e13, "a test"),
)


def has_launch_wrapper(path: Path) -> bool:
    """Has it a public function that takes `stream: Launcher`?"""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            for argument in node.args.kwonlyargs:
                if argument.arg == "stream" and ast.unparse(argument.annotation or node) == (
                    Launcher.__name__
                ):
                    return True
    return False


def stems() -> list[str]:
    return [path.stem for path in sorted(KERNELS.glob("*.py")) if has_launch_wrapper(path)]


@pytest.mark.parametrize("stem", stems())
def test_each_kernel_has_a_test_and_a_benchmark(stem: str) -> None:
    assert (TESTS / f"test_{stem}.py").is_file()
    assert (BENCHMARKS / f"bench_{stem}.py").is_file()


@pytest.mark.parametrize("stem", run_all.stems())
def test_runs_on_the_emulator(stem: str, tmp_path: Path, capsys: Any) -> None:
    """As `bench_<stem>.py --device emulator --quick`: verified, counted, written."""
    out = tmp_path / "rows.jsonl"
    cases = importlib.import_module(f"bench_{stem}").cases
    assert harness.main(stem, cases, "", ["--device=emulator", "--quick", f"--out={out}"]) == 0
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert rows
    for row in rows:
        assert row["verified_to"] <= 1
        assert row["counters"]["load_bytes"] > 0
        assert (row["bench"], row["device"], row["error"]) == (stem, "emulator", None)
    assert rows[0]["case"] in " ".join(capsys.readouterr().out.split())


def softmax_case(n_rows: int = 2, n: int = 64, wrong_by: float = 0.0) -> Case:
    def check(arrays: dict[str, Any], got: dict[str, Any]) -> float:
        exact = np.exp(arrays["x"]) / np.exp(arrays["x"]).sum(axis=1, keepdims=True)
        return float(np.abs(got["out"] + np.float32(wrong_by) - exact).max() / 1e-6)

    return Case(
        name=f"softmax {n_rows}x{n}",
        shape={"n": n},
        arrays=lambda: {
            "x": np.random.default_rng(0).standard_normal((n_rows, n), np.float32),
            "out": poison((n_rows, n)),
        },
        launch=lambda b, stream: softmax(b["x"], b["out"], stream=stream),
        outputs=("out",),
        check=check,
        bytes_read=4 * n_rows * n,
        bytes_written=4 * n_rows * n,
    )


def timed_bench(card: FakeCard, **changed: Any) -> Bench:
    bench = Bench(card, timed=True, quick=True, **changed)
    bench.__dict__["ceilings"] = CEILINGS
    return bench


def test_a_row_of_a_card() -> None:
    """2 us a launch on a fake card; all sets are captured, the last one is verified again."""
    card = FakeCard(launch_us=2.0, free_bytes=3 * 2560)
    bench = timed_bench(card)
    case = softmax_case()
    row = bench.measure("softmax", case)
    assert row.n_sets == set_count(case, case.arrays(), 2**26, card.free_bytes()) == 3
    assert card.graph_sizes == [3]
    assert (row.median, row.p20, row.p80) == pytest.approx((2.0, 2.0, 2.0))
    assert row.gb_per_s == pytest.approx(1024 / 2e-6 / 1e9)
    assert (row.bound, row.cold) == ("copy", False)
    assert row.of_ceiling == pytest.approx(1024 / 5e11 / 2e-6)
    assert row.rival is row.rival_median is row.speedup is None
    assert row.rival_note
    line = json.loads(row.line(bench.environment))
    for name in ("device", "driver", "numba_cuda", "compiled_for", "commit", "date", "unit"):
        assert name in line


def test_a_graph_that_does_nothing_is_found() -> None:
    card = FakeCard(launch_us=2.0, free_bytes=3 * 2560, replays_run=False)
    with pytest.raises(VerificationError):
        timed_bench(card).measure("softmax", softmax_case())


def test_nothing_wrong_is_timed_and_the_others_go_on() -> None:
    card = FakeCard(launch_us=2.0, free_bytes=3 * 2560)
    cases = [softmax_case(wrong_by=0.1), softmax_case(n=65)]
    wrong, right = timed_bench(card).run("softmax", lambda scale: cases)
    assert wrong.median is None
    assert "VerificationError: softmax 2x64: an error is 1e+05 times" in str(wrong.error)
    assert right.median
    assert card.graph_sizes == [2]


def test_only_and_the_time_limit() -> None:
    card = FakeCard(launch_us=2.0, free_bytes=3 * 2560)
    cases = [softmax_case(n=n) for n in (64, 65)]
    (row,) = timed_bench(card, only="2x65").run("softmax", lambda scale: cases)
    assert row.case == "softmax 2x65"
    (row,) = timed_bench(card).run("softmax", lambda scale: cases, limit_s=-1)
    assert row.case == "2 cases left out: time limit"


def test_sets_pass_the_l2_where_memory_allows() -> None:
    case = softmax_case(64, 4096)  # 2 MiB a set
    arrays = case.arrays()
    assert set_count(case, arrays, 2**24, 2**40) == 24
    assert set_count(case, arrays, 2**33, 2**40) == 256
    assert set_count(case, arrays, 1, 2**40) == 4
    assert set_count(case, arrays, 2**24, 10 * 2**21) == 4


def test_ceilings_are_verified_and_measured() -> None:
    card = FakeCard(launch_us=10.0, free_bytes=2**30)
    assert measure_read(card, 2**18, 3).rate == pytest.approx(2**18 / 10e-6)
    assert measure_copy(card, 2**17, 3).rate == pytest.approx(2**18 / 10e-6)
    assert measure_fma(card, 3, n_steps=64).kind == "fma"
    with pytest.raises(DeviceError, match="has not come to 2"):
        measure_fma(card, 3, n_steps=4)


def test_what_bounds_a_work() -> None:
    assert CEILINGS.of(1_000_000, 0, 0) == (CEILINGS.read, pytest.approx(1.0))
    assert CEILINGS.of(1_000_000, 1_000_000, 0) == (CEILINGS.copy, pytest.approx(4.0))
    assert CEILINGS.of(1_000_000, 0, 10**8) == (CEILINGS.fma, pytest.approx(10.0))


def test_percentiles() -> None:
    times = times_of([float(n) for n in range(11)])
    assert (times.p20, times.median, times.p80, times.n_samples) == (2.0, 5.0, 8.0, 11)


def test_run_all_goes_on_past_a_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A benchmark that does not even import, then one that works; the exit code says so."""
    monkeypatch.setattr(run_all, "stems", lambda: ["of_nothing", "argmax"])
    out = tmp_path / "rows.jsonl"
    assert run_all.main(["--device=emulator", "--quick", f"--out={out}"]) == 1
    assert '"bench": "argmax"' in out.read_text(encoding="utf-8")


def test_limits_share_the_time() -> None:
    limits = run_all.limits(240)
    assert sum(limits.values()) == pytest.approx(240)
    assert next(iter(limits)) == "gemv"
    assert Row("b", "c", {}).error is None
