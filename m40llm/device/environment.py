"""Switches in the environment: `NAME=1` and `NAME=0`, and nothing else."""

import os

from m40llm.errors import RequestError

ENABLE_CUBLAS = "M40LLM_ENABLE_CUBLAS"
FORCE_M40 = "M40LLM_FORCE_M40"


def switch(name: str) -> bool | None:
    """The switch's state, None where it is not set. RequestError for a value that is no state."""
    value = os.environ.get(name, "")
    if value not in ("", "0", "1"):
        raise RequestError(f"{name}: expected 0 or 1, got {value!r}")
    return value == "1" if value else None
