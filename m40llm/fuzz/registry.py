"""Targets by name: ours, one or more a kernel of m40llm/kernels, and anybody's from a file."""

import importlib.util
import pkgutil
import sys
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

from m40llm.errors import RequestError
from m40llm.fuzz.definition import Target


@cache
def _ours() -> dict[str, Target]:
    """Every Target of the folder `targets`, by name."""
    package = import_module("m40llm.fuzz.targets")
    found: dict[str, Target] = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = import_module(f"{package.__name__}.{info.name}")
        found |= {t.name: t for t in vars(module).values() if isinstance(t, Target)}
    return dict(sorted(found.items()))


def target_names() -> list[str]:
    """What `--kernel` takes."""
    return list(_ours())


def load_target(source: str) -> Target:
    """The target of this name, or `NAME` of a file given as FILE.py:NAME.

    Raises RequestError for a name of none, with those that there are.
    """
    if ".py:" in source:
        path, _, name = source.rpartition(":")
        if not name:
            raise RequestError(f"kernel {source!r}: expected FILE.py:NAME")
        module = _module(Path(path))
        found = getattr(module, name, None)
        if isinstance(found, Target):
            return found
        targets = sorted(key for key, value in vars(module).items() if isinstance(value, Target))
        there = f"it has {', '.join(targets)}" if targets else "it has none: docs/fuzzing.md"
        raise RequestError(f"{path}: no target {name!r}, a function under @target; {there}")
    if source.endswith(".py"):
        raise RequestError(f"kernel {source!r}: expected FILE.py:NAME, the target's name, too")
    if source not in _ours():
        known = ", ".join(target_names())
        raise RequestError(f"kernel {source!r}: expected FILE.py:NAME or one of {known}")
    return _ours()[source]


def _module(path: Path) -> ModuleType:
    """The module in a file, run once a process."""
    path = path.resolve()
    name = f"m40llm_fuzz_{path.stem}_{abs(hash(str(path)))}"
    if name in sys.modules:
        return sys.modules[name]
    if not path.is_file():
        raise RequestError(f"{path}: no such file")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a script that exits would end us without a word
        del sys.modules[name]
        kind = "" if isinstance(error, RequestError) else f"{type(error).__name__}: "
        raise RequestError(f"{path}: cannot be imported: {kind}{error}") from error
    except BaseException:
        del sys.modules[name]
        raise
    return module
