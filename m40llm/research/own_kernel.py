"""A kernel of the reader's own in the place of one of ours, once it has been checked.

It is checked by our fuzz targets of that op: the NumPy reference, drawn inputs, on the emulator two
orders of threads. docs/your_own_kernel.md goes from an idea to a kernel that a model runs on.
"""

import inspect
import re
from types import SimpleNamespace
from typing import Any

from m40llm.device.gpu.launches import OURS, Launch, Launches
from m40llm.errors import RequestError
from m40llm.fuzz import Target, explore, load_target, target_names
from m40llm.progress import Progress, silent


def targets_of(name: str) -> list[Target]:
    """The fuzz targets that launch this op."""
    found = [load_target(known) for known in target_names()]
    uses = re.compile(rf"\bops\.{name}\b|getattr\(ops, name\)")
    return [t for t in found if hasattr(t.ops, name) and uses.search(inspect.getsource(t.check))]


def check_kernel(
    name: str, launch: Launch, *, device: str, examples: int, progress: Progress | None = None
) -> None:
    """RequestError, with the smallest case that was found and why, where the kernel is wrong."""
    if not callable(launch):
        raise RequestError(
            f"launch: expected a function such as m40llm.kernels' {name}, got {launch!r}"
        )
    told, targets = progress or silent, targets_of(name)
    for n, target in enumerate(targets):
        mine = target.with_ops(SimpleNamespace(**vars(target.ops) | {name: launch}))
        begin = n / len(targets)

        def watch(n_done: int, seconds: float, begin: float = begin) -> None:
            told(f"checking {name}", begin + min(n_done / examples, 1) / len(targets))

        outcome = explore(mine, examples=examples, device=device, seed=0, watch=watch)
        if outcome.interrupted:
            raise KeyboardInterrupt
        if outcome.failure is not None:
            case = ", ".join(f"{key}={value!r}" for key, value in outcome.failure.case.items())
            raise RequestError(
                f"launch: it is not {name}, which stays as it was: {target.name}({case}): "
                f"{outcome.failure.error}"
            )
    told(f"checking {name}", 1.0)


def check_in_use(ops: Any, name: str) -> None:
    """RequestError for an op that cannot be replaced, or that nobody calls."""
    if not isinstance(name, str) or name not in OURS:
        raise RequestError(f"name: expected one of {', '.join(OURS)}, got {name!r}")
    if ops.products is not None and name in ("gemm", "gemv"):
        raise RequestError(f"name: {name} is not in use: cuBLAS makes the products")


def put(ops: Any, name: str, launch: Launch | None) -> bool:
    """Puts the wrapper, or ours for None, in its place; whether all are ours then."""
    now = {key: getattr(ops.launches, key) for key in OURS}
    ops.launches = Launches(**now | {name: launch or OURS[name]})
    is_ours: bool = ops.launches.is_ours
    return is_ours
