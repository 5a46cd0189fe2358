"""Compiled code on disk: an entry is found whole or not at all, and never trusted when broken.

An entry is a digest of the rest, a line of JSON, and the code. The folders lie in M40LLM_HOME,
else in the user's cache; deleting them costs time, nothing else.
"""

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import platformdirs

from m40llm.whole_file import whole_file

Entry = tuple[dict[str, Any], bytes]
"""(what is known of the code, the code)."""


def entry_path(folder: str, key: str) -> Path:
    """Where the entry of this key lies in the cache `folder`: "emulator", "cuda", ..."""
    home = os.environ.get("M40LLM_HOME")
    return Path(home or platformdirs.user_cache_dir("m40llm")) / folder / f"{key}.kernel"


def key_of(*parts: str) -> str:
    """A file name for all that decides what the code is."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:40]


def read_entry(path: Path) -> Entry | None:
    """The entry; None if it is missing or not as it was written."""
    try:
        digest, header, code = path.read_bytes().split(b"\n", 2)
    except (OSError, ValueError):
        return None
    if digest != _digest(header, code):
        return None
    return json.loads(header), code


def write_entry(path: Path, header: dict[str, Any], code: bytes) -> None:
    """See `write_whole`."""
    line = json.dumps(header).encode()
    write_whole(path, b"\n".join((_digest(line, code), line, code)))


def write_whole(path: Path, data: bytes) -> None:
    """Store so that a reader sees all of it or nothing; a full or read-only disk is no error."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path, 0o600) as file:
            file.write(data)


def _digest(header: bytes, code: bytes) -> bytes:
    return hashlib.sha256(header + b"\n" + code).hexdigest().encode()
