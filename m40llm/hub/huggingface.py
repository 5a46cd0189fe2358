"""Models by `hf:OWNER/REPO/FILE.gguf`, fetched by huggingface_hub (the extra `hub`).

The file lies in `<cache>/hf`, in huggingface_hub's own layout. `HF_ENDPOINT` names another hub,
`HF_TOKEN` opens private and gated repositories.
"""

import errno
import inspect
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from m40llm.errors import M40LLMError, PullError, RequestError
from m40llm.hub.cache import cache_dir, pull_lock, sha256_of, writing_to
from m40llm.progress import BytesDone, Progress

PREFIX = "hf:"
_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?")  # of an owner, a repository
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+ -]*")  # of each step of the path inside it
DISK_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
_SHA256 = re.compile(r"[0-9a-f]{64}")


def parse_name(name: str) -> tuple[str, str]:
    """Split `hf:OWNER/REPO/FILE.gguf` into ("OWNER/REPO", "FILE.gguf"); FILE may be in folders.

    Raises:
        RequestError: the name has not that form.
    """
    parts = name.removeprefix(PREFIX).split("/")
    well_formed = (
        len(parts) >= 3
        and all(_NAME.fullmatch(part) for part in parts[:2])
        and all(_FILE.fullmatch(part) for part in parts[2:])
        and parts[-1].endswith(".gguf")
    )
    if not well_formed:
        raise RequestError(f"model: expected hf:OWNER/REPO/FILE.gguf, got {name!r}")
    return "/".join(parts[:2]), "/".join(parts[2:])


def pull_hf(name: str, *, force: bool, progress: Progress) -> Path:
    """Fetch the file named `hf:OWNER/REPO/FILE.gguf` unless it is in the cache.

    Raises:
        RequestError: the name is malformed.
        PullError: the extra `hub` is not installed, or the file could not be fetched.
    """
    repo, file = parse_name(name)
    folder = cache_dir() / "hf"
    try:
        from huggingface_hub import hf_hub_download, try_to_load_from_cache
    except ImportError as error:
        raise PullError(
            f"{name}: huggingface_hub is not installed; run: pip install huggingface_hub"
        ) from error
    cached = try_to_load_from_cache(repo, file, cache_dir=folder)
    if isinstance(cached, str) and not force:
        return Path(cached)
    options: dict[str, Any] = {"force_download": force}
    # Versions of huggingface_hub before 1.0 cannot report to us: they draw their own bar.
    if "tqdm_class" in inspect.signature(hf_hub_download).parameters:
        options["tqdm_class"] = _bar_class(progress)
    with writing_to(folder), _quiet(), _explained(name, repo, file):
        folder.mkdir(parents=True, exist_ok=True)
        with pull_lock(folder, repo.replace("/", "--"), progress):
            _remove_leftovers(folder, repo)
            # Read at each call, where huggingface_hub reads it once, at its import.
            endpoint = os.environ.get("HF_ENDPOINT") or None
            path = Path(hf_hub_download(repo, file, cache_dir=folder, endpoint=endpoint, **options))
            _check(name, path, progress)
    return path


def cached_files() -> Iterator[tuple[str, Path]]:
    """The name and path of each GGUF file in the cache, `hf:OWNER/REPO/FILE.gguf`."""
    for path in sorted((cache_dir() / "hf").glob("models--*--*/snapshots/*/**/*.gguf")):
        parts = path.relative_to(cache_dir() / "hf").parts
        _, owner, repo = parts[0].split("--", 2)
        yield f"{PREFIX}{owner}/{repo}/{'/'.join(parts[3:])}", path


def _bar_class(progress: Progress) -> type:
    """A progress bar in the eyes of huggingface_hub that draws nothing and tells `progress`."""
    from huggingface_hub.utils import tqdm

    class Report(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.n_done, self.n_total = kwargs.get("initial") or 0, kwargs.get("total")
            super().__init__(*args, **kwargs | {"disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            self.n_done += n or 0
            if self.n_total:
                progress("download", BytesDone(int(self.n_done), int(self.n_total)))
            return None

    return Report


def _remove_leftovers(folder: Path, repo: str) -> None:
    """Remove what killed downloads left: `<etag>.<random>.incomplete` is never resumed."""
    for stale in (folder / f"models--{repo.replace('/', '--')}").glob("blobs/*.*.incomplete"):
        stale.unlink(missing_ok=True)


def _check(name: str, path: Path, progress: Progress) -> None:
    """Check the file against its SHA-256 where the hub gave one: the name of the blob behind it."""
    blob = path.resolve()
    if not _SHA256.fullmatch(blob.name):
        return
    got = sha256_of(blob, "check", progress)
    if got != blob.name:
        path.unlink()
        blob.unlink(missing_ok=True)
        raise PullError(
            f"{name}: wrong checksum, expected sha256 {blob.name}, got {got}; nothing was kept, "
            "try again"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Its warnings of every attempt are not shown: what came of them, our own error says once."""
    from huggingface_hub.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


@contextmanager
def _explained(name: str, repo: str, file: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into a `PullError` that says what to do."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise PullError(
            f"{name}: {repo} asks you to accept its terms on its page first; then set HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise PullError(
            f"{name}: no repository {repo}, or it is private (set HF_TOKEN to open it)"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        hub = os.environ.get("HF_ENDPOINT") or "the hub"
        raise PullError(
            f"{name}: {hub} cannot be reached; check the network, HF_ENDPOINT and proxies"
        ) from error
    except errors.EntryNotFoundError as error:
        raise PullError(f"{name}: {repo} has no file {file}") from error
    except errors.HFValidationError as error:
        raise RequestError(f"model: {name!r}: {error}") from error
    except M40LLMError:
        raise
    # Each version brings another HTTP client with its own errors: they share no other base.
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_ERRNOS:
            raise
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        raise PullError(f"{name}: the download failed: {first_line}") from error
