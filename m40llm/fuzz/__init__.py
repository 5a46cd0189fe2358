"""Fuzzing of GPU kernels against their references, on the emulator or a card; docs/fuzzing.md.

    @target(n=sizes(64), seed=seeds())
    def step(card, n, seed): ...          # one launch, one comparison

    fuzz(step)

Importing this package is cheap: Hypothesis, Numba and the kernels load with the first name.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from m40llm.fuzz.bench import Bench
    from m40llm.fuzz.bounds import UNIT_ROUNDOFF, gamma
    from m40llm.fuzz.check import check_case
    from m40llm.fuzz.contents import floats, integers, normals
    from m40llm.fuzz.definition import Target, target
    from m40llm.fuzz.registry import load_target, target_names
    from m40llm.fuzz.report import Failure
    from m40llm.fuzz.runner import FoundError, Outcome, explore, fuzz
    from m40llm.fuzz.strategies import flags, lengths, schedules, seeds, sizes, widths

__all__ = [
    "UNIT_ROUNDOFF",
    "Bench",
    "Failure",
    "FoundError",
    "Outcome",
    "Target",
    "check_case",
    "explore",
    "flags",
    "floats",
    "fuzz",
    "gamma",
    "integers",
    "lengths",
    "load_target",
    "normals",
    "schedules",
    "seeds",
    "sizes",
    "target",
    "target_names",
    "widths",
]

_HOME = {
    "bench": ("Bench",),
    "bounds": ("UNIT_ROUNDOFF", "gamma"),
    "check": ("check_case",),
    "contents": ("floats", "integers", "normals"),
    "registry": ("load_target", "target_names"),
    "report": ("Failure",),
    "runner": ("FoundError", "Outcome", "explore", "fuzz"),
    "strategies": ("flags", "lengths", "schedules", "seeds", "sizes", "widths"),
    "definition": ("Target", "target"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'm40llm.fuzz' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"m40llm.fuzz.{_MODULE_OF[name]}"), name)
