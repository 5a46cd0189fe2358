"""The runner: shrinks, keeps, replays, stops in time, and refuses what cannot be."""

import inspect
import pkgutil
import re
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import m40llm.kernels
from m40llm.errors import RequestError
from m40llm.fuzz import FoundError, check_case, explore, fuzz, load_target, seeds, sizes, target
from m40llm.fuzz.fp64 import suspicious
from m40llm.fuzz.report import literal

CALLS: list[int] = []


@target(n=sizes(16), seed=seeds())
def below_forty(card: Any, n: int, seed: int) -> None:
    CALLS.append(n)
    assert n < 40, f"{n} is too many"


@target(n=sizes(16))
def fine(card: Any, n: int) -> None:
    pass


@target(n=sizes(16))
def guards(card: Any, n: int) -> None:
    card.guarded((n, 2))
    card._guarded[0][-1] = 0


@target(n=sizes(16))
def random(card: Any, n: int) -> None:
    card.read(card.upload(np.random.default_rng().random(n)))


@target(n=sizes(16))
def in_any_order(card: Any, n: int) -> None:
    card.read(card.upload(np.random.default_rng().permutation(n)), seen_as=np.sort)


def test_shrinks_to_the_smallest() -> None:
    failure = explore(below_forty, seed=3).failure
    assert failure is not None
    assert failure.case == {"schedule": 0, "n": 40, "seed": 0}
    assert failure.is_sure
    assert failure.error == "AssertionError: 40 is too many\nassert 40 < 40"


def test_the_same_seed_gives_the_same_cases() -> None:
    runs = []
    for seed in (5, 5, 6):
        CALLS.clear()
        explore(below_forty, seed=seed, shrink=False)
        runs.append(list(CALLS))
    assert runs[0] == runs[1] != runs[2]


def test_keeps_a_test_that_fails_and_tries_it_first(tmp_path: Path) -> None:
    failure = explore(below_forty, seed=1, keep=tmp_path).failure
    assert failure is not None
    assert failure.path is not None
    assert failure.path.read_text(encoding="utf-8") == failure.test
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-o", "addopts="]
    done = subprocess.run(
        [*command, str(failure.path)], capture_output=True, text=True, check=False
    )
    assert "AssertionError: 40 is too many" in done.stdout
    assert done.returncode == 1
    CALLS.clear()
    assert explore(below_forty, seed=2, keep=tmp_path).n_examples == 1
    assert CALLS[0] == 40


def test_fuzz_raises_what_explore_returns() -> None:
    with pytest.raises(FoundError, match="40 is too many"):
        fuzz(below_forty, seed=0)
    with pytest.raises(AssertionError, match="40 is too many"):
        check_case(below_forty, n=40, seed=0)


def test_time_ends_it() -> None:
    begin = time.monotonic()
    outcome = explore(fine, seconds=0.3, seed=0)
    assert outcome.failure is None
    assert not outcome.interrupted
    assert time.monotonic() - begin < 5


def test_ctrl_c_keeps_what_was_found() -> None:
    def interrupt(n: int, seconds: float) -> None:
        if CALLS[-1] >= 40:
            raise KeyboardInterrupt

    outcome = explore(below_forty, seed=0, watch=interrupt)
    assert outcome.interrupted
    assert outcome.failure is not None
    with pytest.raises(FoundError):
        fuzz(below_forty, seed=0, watch=interrupt)


def test_guard_rows_and_races_are_seen() -> None:
    failure = explore(guards, seed=0).failure
    assert failure is not None
    assert "the guard row after float32(2, 2) was written" in failure.error
    failure = explore(random, seed=0).failure
    assert failure is not None
    assert "a race: read 0 (float64[1]) differs" in failure.error
    assert explore(in_any_order, seed=0, examples=20).failure is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"examples": 0}, "examples: expected at least 1, got 0"),
        ({"examples": -3}, "examples: expected at least 1, got -3"),
        ({"seconds": 0}, "seconds: expected more than 0, got 0"),
    ],
)
def test_impossible_numbers(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        explore(fine, **options)


def test_wrong_targets() -> None:
    with pytest.raises(RequestError, match=r"FILE.py:NAME or one of add_bias, add_rms_norm"):
        load_target("nothing")
    with pytest.raises(RequestError, match="no such file"):
        load_target("/nowhere/mine.py:halve")
    with pytest.raises(RequestError, match=r"no target 'sizes'.*it has below_forty"):
        load_target(f"{__file__}:sizes")
    with pytest.raises(RequestError, match=r"draws \['m'\], but its check takes \['n'\]"):
        target(m=sizes(4))(fine.check)


def test_every_op_of_the_kernels_has_a_target() -> None:
    """A function that takes a stream is an op; each is named in a target's file."""
    folder = Path(str(import_module("m40llm.fuzz.targets").__file__)).parent
    text = "".join(path.read_text(encoding="utf-8") for path in folder.glob("*.py"))
    for info in pkgutil.iter_modules(m40llm.kernels.__path__):
        module = import_module(f"m40llm.kernels.{info.name}")
        for name, value in vars(module).items():
            if not inspect.isfunction(value) or value.__module__ != module.__name__:
                continue
            is_op = not name.startswith(("_", "launch_"))  # the latter: what wrappers share
            if is_op and "stream" in inspect.signature(value).parameters:
                assert re.search(rf'\bops\.{name}\b|"{name}"', text), f"{info.name}.{name}"


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), (1,), ("a", 2.5), 'q"\\', True, ()])
def test_literals(value: Any) -> None:
    assert eval(literal(value)) == value


def test_constants_are_no_fp64() -> None:
    folded = "%a = fsub double 0x80, 0x0, !dbg !1\n%b = fptrunc double %a to float, !dbg !2"
    assert not suspicious(folded)
    assert suspicious(folded + "\n%d = fmul double %c, %a")
    assert suspicious("%d = fpext float %c to double")
