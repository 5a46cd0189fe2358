"""The environment: switches, `NAME=1` and `NAME=0` and nothing else, and Numba's architecture."""

import os
import re

from m40llm.errors import RequestError

ENABLE_CUBLAS = "M40LLM_ENABLE_CUBLAS"
FORCE_M40 = "M40LLM_FORCE_M40"
FORCE_CC = "NUMBA_FORCE_CUDA_CC"


def switch(name: str) -> bool | None:
    """The switch's state, None where it is not set. RequestError for a value that is no state."""
    value = os.environ.get(name, "")
    if value not in ("", "0", "1"):
        raise RequestError(f"{name}: expected 0 or 1, got {value!r}")
    return value == "1" if value else None


def forced_capability() -> tuple[int, int] | None:
    """The architecture that NUMBA_FORCE_CUDA_CC asks for, None where it is not set.

    RequestError for a value that is none, of which Numba makes a warning with a traceback.
    """
    value = os.environ.get(FORCE_CC, "")
    match = re.fullmatch(r"(\d+)\.(\d+)[af]?", value)
    if value and not match:
        raise RequestError(f"{FORCE_CC}: expected a compute capability such as 5.2, got {value!r}")
    return (int(match[1]), int(match[2])) if match else None
