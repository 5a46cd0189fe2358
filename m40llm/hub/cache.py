"""The cache folder: where pulled models lie, and how a file gets there whole or not at all.

<cache>/models/SmolLM2-135M-Instruct.Q4_1.gguf     models of the alias table
<cache>/models/.pull-smollm2-XXXXXX/               a pull at work, or what a killed one left
<cache>/models/.lock-smollm2                       held by the process that pulls
<cache>/tools/nvdisasm-12.4                        what is no model: see tools.py
<cache>/hf/                                        what huggingface_hub keeps, in its own layout
"""

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from m40llm.errors import PullError
from m40llm.progress import BytesDone, Progress

CHUNK_BYTES = 1 << 20
LOCK_POLL_S = 0.2
STALE_S = 24 * 3600  # without locks, a working folder this old has no living owner


def cache_dir() -> Path:
    """The folder of pulled models: `M40LLM_HOME`, or the user's cache directory."""
    home = os.environ.get("M40LLM_HOME")
    if home:
        return Path(home).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("m40llm"))


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Turn a failed write under `folder` (full, read-only, no such place) into a `PullError`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise PullError(
            f"cannot write to the cache folder {folder}: {reason}; make room there, or set "
            "M40LLM_HOME to another folder"
        ) from error


def require_space(folder: Path, n_bytes: int) -> None:
    """Refuse a download that the disk of `folder` cannot hold.

    Raises:
        PullError: with what is needed and what is free.
    """
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise PullError(
            f"not enough room in {folder}: {n_bytes / 1e6:.0f} MB needed, {free / 1e6:.0f} MB "
            "free; make room there, or set M40LLM_HOME to another folder"
        )


@contextmanager
def pull_lock(folder: Path, name: str, progress: Progress) -> Iterator[bool]:
    """Hold the lock of `name`, waiting for another process that has it; released with the process.

    Yields True under a lock, False where the system or the filesystem has none.
    """
    with (folder / f".lock-{name}").open("w") as file:
        yield _lock(file.fileno(), progress)  # closing the file releases the lock


def _lock(fd: int, progress: Progress) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            progress("waiting for another pull of the same model", 0.0)
            time.sleep(LOCK_POLL_S)
        except OSError:  # a network filesystem without locks
            return False


@contextmanager
def work_folder(folder: Path, name: str, *, locked: bool) -> Iterator[Path]:
    """A fresh folder beside the target, removed at the end; first, what killed pulls left goes."""
    for stale in folder.glob(f".pull-{name}-*"):
        if locked or time.time() - stale.stat().st_mtime > STALE_S:
            shutil.rmtree(stale, ignore_errors=True)
    with tempfile.TemporaryDirectory(
        prefix=f".pull-{name}-", dir=folder, ignore_cleanup_errors=True
    ) as work:
        yield Path(work)


def sha256_of(path: Path, stage: str, progress: Progress) -> str:
    """The file's SHA-256 in hexadecimal, read in chunks, with progress."""
    digest, done, total = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            progress(stage, BytesDone(done, total))
    return digest.hexdigest()


def publish(finished: Path, target: Path) -> None:
    """Rename a finished, synced file to its final name: a reader sees the whole file or none."""
    os.replace(finished, target)
    if os.name == "posix":  # the rename itself reaches the disk with the folder's sync
        fd = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
