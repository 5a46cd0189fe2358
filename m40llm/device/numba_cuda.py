"""Numba's CUDA target: whether it can be used, and what to do where it cannot, in one line."""

import importlib.util
import os
from textwrap import shorten
from typing import Final

from m40llm.device.environment import forced_capability
from m40llm.device.packages import CUDA_PACKAGE

# Numba's switches that put something else in the place of its compiler.
_SWITCHES: Final = ("NUMBA_ENABLE_CUDASIM", "NUMBA_DISABLE_JIT")


def numba_cuda_problem() -> str | None:
    """Why numba.cuda cannot be used, and the command that helps; None where it has been imported.

    The package numba-cuda alone is not enough: without the CUDA libraries that its extras bring,
    or a toolkit's, its import fails with what the loader of libraries says. RequestError where
    the environment asks for an architecture that is none.
    """
    forced_capability()
    if importlib.util.find_spec("numba_cuda") is None:
        return f"numba-cuda is not installed: {CUDA_PACKAGE}"
    for name in _SWITCHES:
        if os.environ.get(name, "0") not in ("", "0"):
            return f"{name} turns Numba's CUDA compiler off: unset {name}"
    try:
        import numba.cuda  # noqa: F401
    except Exception as error:  # whatever a missing or odd library raises
        reason = shorten(str(error) or type(error).__name__, 80, placeholder=" ...")
        return f"numba-cuda cannot be imported ({reason}): {CUDA_PACKAGE}"
    return None
