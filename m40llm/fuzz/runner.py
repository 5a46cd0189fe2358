"""The fuzzing itself: Hypothesis draws cases, the first that fails is shrunk, reported and kept."""

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from m40llm.errors import DeviceError, RequestError
from m40llm.fuzz.check import check_schedules
from m40llm.fuzz.definition import Target
from m40llm.fuzz.launchers import open_launcher
from m40llm.fuzz.report import Failure, failure_of
from m40llm.fuzz.strategies import cases, schedules

from hypothesis import HealthCheck, Phase, Verbosity, given, settings  # isort: skip
from hypothesis import seed as seeded  # isort: skip
from hypothesis.database import DirectoryBasedExampleDatabase, ExampleDatabase  # isort: skip
from hypothesis.errors import UnsatisfiedAssumption  # isort: skip

DEFAULT_EXAMPLES = 100
NO_END = 10**9  # examples, where time alone says when to stop
Watch = Callable[[int, float], None]
"""watch(examples, seconds): how far it is; called after each case."""


class FoundError(AssertionError):
    """Fuzzing found a failure; the text has the test."""

    def __init__(self, failure: Failure) -> None:
        kept = f"\nkept as {failure.path}" if failure.path else ""
        super().__init__(f"{failure.error}\n\n{failure.test}{kept}")
        self.failure = failure


@dataclass(frozen=True)
class Outcome:
    """What came of fuzzing one target.

    n_examples   cases tried until the end, or until one failed
    interrupted  Ctrl-C ended it
    """

    target: str
    seed: int
    n_examples: int
    seconds: float
    failure: Failure | None = None
    interrupted: bool = False


class _StopError(KeyboardInterrupt):
    """Ends Hypothesis at once, without a report: time is up, or the device failed."""


def fuzz(target: Target, **options: Any) -> Outcome:
    """As `explore`, but a failure is raised: FoundError, whose text is the test that shows it."""
    outcome = explore(target, **options)
    if outcome.failure is not None:
        raise FoundError(outcome.failure)
    if outcome.interrupted:
        raise KeyboardInterrupt
    return outcome


def explore(
    target: Target,
    *,
    examples: int | None = None,
    seconds: float | None = None,
    seed: int | None = None,
    device: str = "emulator",
    keep: str | os.PathLike[str] | None = None,
    shrink: bool = True,
    watch: Watch | None = None,
) -> Outcome:
    """Try cases of a target until one fails, or until as many or as long as asked were tried.

    examples  cases to try (None: 100, or without end where there are `seconds`)
    seed      the same gives the same cases; None draws one, which the outcome tells
    keep      a folder for the failure's test, and for what has failed, to be tried first next time
    Raises RequestError for impossible numbers, DeviceError where the device fails.
    """
    if examples is not None and examples < 1:
        raise RequestError(f"examples: expected at least 1, got {examples}")
    if seconds is not None and not seconds > 0:
        raise RequestError(f"seconds: expected more than 0, got {seconds}")
    if seed is None:
        seed = int.from_bytes(os.urandom(4), "little")
    n_most = examples or (DEFAULT_EXAMPLES if seconds is None else NO_END)
    folder = None if keep is None else Path(keep)
    search = _Search(target, device, seconds, watch or (lambda n, s: None))
    search.run(_settings(target, n_most, folder, shrink), seed)
    failure = search.failure()
    if failure is not None and folder is not None:
        failure = replace(failure, path=_keep(folder, failure))
    return Outcome(target.name, seed, search.n, search.spent(), failure, search.interrupted)


class _Search:
    """One run of Hypothesis, and what it has seen."""

    def __init__(self, target: Target, device: str, seconds: float | None, watch: Watch) -> None:
        self.target, self.device, self.watch = target, device, watch
        self.launcher = open_launcher(device)
        self.begin, self.limit = time.monotonic(), seconds
        self.n = 0
        self.interrupted, self.is_sure = False, True
        self.last: tuple[BaseException, dict[str, Any]] | None = None  # that failed
        self.fault: DeviceError | None = None

    def spent(self) -> float:
        return time.monotonic() - self.begin

    def run(self, how: Any, seed: int) -> None:
        draws = cases({"schedule": schedules(), **self.target.draws})
        test: Any = how(seeded(seed)(given(draws)(self.one)))
        try:
            test()
        except _StopError:
            if self.fault is not None:
                raise self.fault from None
        except KeyboardInterrupt:
            self.interrupted = True
        except Exception:
            if self.last is None:  # Hypothesis itself objects: to a strategy, say
                raise

    def one(self, case: dict[str, Any]) -> None:
        """Check one case, unless time is up."""
        if self.limit is not None and self.n and self.spent() > self.limit:
            raise _StopError
        arguments = dict(case)
        schedule = arguments.pop("schedule")
        try:
            self.n += self.last is None
            check_schedules(self.target, self.launcher, schedule, arguments)
        except UnsatisfiedAssumption:
            raise
        except DeviceError as error:
            self.fault = error
            raise _StopError from error
        except Exception as error:
            self.last = error, case
            self.is_sure = True
            raise
        else:
            if self.last is not None and case == self.last[1]:
                self.is_sure = False  # it has failed before
        finally:
            self.watch(self.n, self.spent())

    def failure(self) -> Failure | None:
        if self.last is None:
            return None
        error, case = self.last
        return failure_of(self.target, error, case, self.device, is_sure=self.is_sure)


def _settings(target: Target, examples: int, folder: Path | None, shrink: bool) -> settings:
    phases = [Phase.reuse, Phase.generate, *([Phase.shrink] if shrink else [])]
    database: ExampleDatabase | None = None
    if folder is not None:
        digest = hashlib.sha256(target.source.encode()).hexdigest()[:8]  # files share names
        database = DirectoryBasedExampleDatabase(folder / "examples" / f"{target.name}_{digest}")
    return settings(
        max_examples=examples,
        database=database,
        phases=phases,
        deadline=None,
        derandomize=False,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
        print_blob=False,
    )


def _keep(folder: Path, failure: Failure) -> Path:
    """Write the failure's test; RequestError where that cannot be."""
    path = folder / failure.file_name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(failure.test, encoding="utf-8")
    except OSError as error:
        raise RequestError(f"keep: cannot write {path}: {error.strerror or error}") from error
    return path
