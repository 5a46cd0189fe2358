"""`m40llm fuzz`: kernels against their references, unattended, until one fails or time is up."""

import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from m40llm.cli import options as opt
from m40llm.cli.guard import EXIT_FAILURE, EXIT_INTERRUPTED, guarded
from m40llm.cli.output import print_json, progress_bar, status, table
from m40llm.errors import RequestError

if TYPE_CHECKING:
    from m40llm.fuzz import Outcome, Target

DEVICES = r"emulator|cuda(:(-1|\d+))?"


def _check_device(value: str) -> str:
    if not re.fullmatch(DEVICES, value):
        raise typer.BadParameter(f"expected emulator, cuda or cuda:N, got {value!r}")
    return value


Kernels = Annotated[
    list[str] | None,
    typer.Option(
        "--kernel",
        metavar="NAME",
        help="A kernel (--list names them) or your FILE.py:NAME; may be given several times.  "
        "[default: all]",
        show_default=False,
    ),
]
Examples = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Cases a kernel.  [default: 100, or as many as --seconds allows]",
        show_default=False,
    ),
]
Seconds = Annotated[
    float | None,
    typer.Option(metavar="S", help="Stop after this time, shared out evenly.", show_default=False),
]
Seed = Annotated[
    int | None,
    typer.Option(
        min=0, metavar="N", help="The same seed gives the same cases.", show_default=False
    ),
]
Keep = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Where failures are kept.  [default: fuzz/ in the cache folder]",
        show_default=False,
    ),
]
OnDevice = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="emulator|cuda|cuda:N",
        help="Where the kernels run.",
        callback=_check_device,
    ),
]
ShowList = Annotated[bool, typer.Option("--list", help="List the kernels, and fuzz none.")]


@guarded
def fuzz(
    kernel: Kernels = None,
    examples: Examples = None,
    seconds: Seconds = None,
    seed: Seed = None,
    keep: Keep = None,
    device: OnDevice = "emulator",
    show_list: ShowList = False,
    as_json: opt.AsJson = False,
    debug: opt.Debug = False,
) -> None:
    """Fuzz GPU kernels against their references; what fails is shrunk, printed and kept as a test.

    Exit code 1 where a kernel failed. docs/fuzzing.md shows how to fuzz a kernel of your own.

    \b
    Examples:
      m40llm fuzz
      m40llm fuzz --kernel gemv --kernel gemm --seconds 3600
      m40llm fuzz --kernel mine.py:step --examples 1000 --seed 7
    """
    from m40llm.fuzz import load_target, target_names

    if show_list:
        names = target_names()
        if as_json:
            print_json({"kernels": names})
        else:
            print("\n".join(names))
        return
    if seconds is not None and not seconds > 0:
        raise RequestError(f"--seconds: expected more than 0, got {seconds}")
    targets = [load_target(name) for name in kernel or target_names()]
    folder = _prepared(keep)
    if seed is None:
        seed = time.time_ns() % 2**32
    how = {"examples": examples, "seed": seed, "device": device, "keep": folder}
    outcomes = _fuzz_all(targets, seconds, how)
    _tell(outcomes, device, seed, as_json=as_json)
    if outcomes[-1].interrupted:
        status("interrupted")
        raise typer.Exit(EXIT_INTERRUPTED)
    if any(outcome.failure for outcome in outcomes):
        raise typer.Exit(EXIT_FAILURE)


def _prepared(keep: Path | None) -> Path:
    """The folder of failures, made and writable, and Hypothesis' own files in it."""
    from hypothesis.configuration import set_hypothesis_home_dir

    from m40llm import hub

    folder = keep or hub.cache_dir() / "fuzz"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise RequestError(f"--keep: cannot write to {folder}: {reason}") from error
    set_hypothesis_home_dir(folder / "hypothesis")
    return folder


def _fuzz_all(
    targets: "list[Target]", seconds: float | None, how: dict[str, Any]
) -> "list[Outcome]":
    """Each target in turn, up to the last or to Ctrl-C; a line of each on stderr."""
    from m40llm.fuzz import explore

    end = None if seconds is None else time.monotonic() + seconds
    outcomes: list[Outcome] = []
    for n, target in enumerate(targets):
        share = None
        if end is not None:
            share = max((end - time.monotonic()) / (len(targets) - n), 0.001)
        with progress_bar() as progress:
            watch = _watch(target.name, how["examples"], share, progress)
            outcome = explore(target, seconds=share, watch=watch, **how)
        outcomes.append(outcome)
        found = "FAILED" if outcome.failure else "nothing found"
        status(f"{target.name}: {_speed(outcome.n_examples, outcome.seconds)}: {found}")
        if outcome.interrupted:
            break
    return outcomes


def _watch(
    name: str, examples: int | None, share: float | None, progress: Callable[[str, float], None]
) -> Callable[[int, float], None]:
    """Reports examples and rate to a terminal; elsewhere, the name alone."""
    from m40llm.fuzz.runner import DEFAULT_EXAMPLES

    shows_all = sys.stderr.isatty()
    most = examples or (DEFAULT_EXAMPLES if share is None else None)

    def watch(n: int, spent: float) -> None:
        done = max(n / most if most else 0.0, spent / share if share else 0.0)
        progress(f"{name}: {_speed(n, spent)}" if shows_all else f"fuzzing {name}", min(done, 1.0))

    return watch


def _speed(n: int, seconds: float) -> str:
    return f"{n} examples in {seconds:.1f} s ({n / max(seconds, 1e-3):.0f}/s)"


def _tell(outcomes: "list[Outcome]", device: str, seed: int, *, as_json: bool) -> None:
    """The failures and what was tried, on stdout."""
    failures = [outcome.failure for outcome in outcomes if outcome.failure]
    if as_json:
        rows = [_row(outcome) for outcome in outcomes]
        print_json({"device": device, "seed": seed, "n_found": len(failures), "kernels": rows})
        return
    for failure in failures:
        doubt = "" if failure.is_sure else "; not every run of it fails"
        print(f"{failure.target}: {failure.error}\n\n{failure.test}")
        print(f"kept as {failure.path}{doubt}\n")
    shown = [
        (o.target, o.n_examples, f"{o.seconds:.1f} s", "FAILED" if o.failure else "nothing found")
        for o in outcomes
    ]
    print(table(shown, indent=0))
    n_examples = sum(outcome.n_examples for outcome in outcomes)
    print(f"{n_examples} examples on {device} from --seed {seed}: {len(failures)} kernels failed")


def _row(outcome: "Outcome") -> dict[str, Any]:
    failure = outcome.failure
    told = None
    if failure is not None:
        told = {
            "error": failure.error,
            "case": dict(failure.case),
            "test": failure.test,
            "path": str(failure.path),
            "is_sure": failure.is_sure,
        }
    return {
        "name": outcome.target,
        "n_examples": outcome.n_examples,
        "seconds": round(outcome.seconds, 3),
        "failure": told,
        "is_interrupted": outcome.interrupted,
    }
