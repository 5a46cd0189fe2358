"""Python compiled by Numba for the host, cached on disk, and never stale.

Numba's cache looks at the time stamp of a function's own file alone. These functions have record
layouts and each other compiled in, so theirs looks at the text of every file of the emulator.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from numba import cfunc, njit

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _source_stamp() -> str:
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()


SOURCE_STAMP: Final = _source_stamp()


def compiled(function: _Function) -> _Function:
    """Machine code that runs without the interpreter lock."""
    dispatcher: Any = njit(nogil=True, cache=True)(function)
    dispatcher._cache._cache_file._source_stamp = SOURCE_STAMP
    return dispatcher  # type: ignore[no-any-return]


def callback_address(function: Callable[..., Any], signature: Any) -> int:
    """Compile the function at once, with the C calling convention, and give its address."""
    callback: Any = cfunc(signature)(function)  # small: what it calls is cached
    _callbacks.append(callback)
    return int(callback.address)


_callbacks: list[Any] = []  # kept alive
