"""From what a user calls a model to the path of its file."""

import difflib
import sys
from dataclasses import dataclass
from pathlib import Path

from m40llm.errors import RequestError
from m40llm.hub.aliases import ALIASES
from m40llm.hub.huggingface import PREFIX, cached_files, pull_hf
from m40llm.hub.pull_alias import alias_path, is_pulled, pull_alias
from m40llm.progress import Progress, silent


@dataclass(frozen=True)
class KnownModel:
    """A model that has an alias or lies in the cache; `path` is None while it is not pulled."""

    name: str
    path: Path | None
    n_bytes: int
    licence: str | None
    about: str | None


def resolve(model: str, *, progress: Progress | None = None) -> Path:
    """The path of `model`: a file's path, an alias, or `hf:OWNER/REPO/FILE.gguf`.

    What is not in the cache yet is pulled first, `progress(stage, fraction)` being told how far.

    Raises:
        RequestError: it is none of these.
        PullError: it could not be fetched.
    """
    path = Path(model).expanduser()
    if path.is_file():
        return path
    if path.is_dir() and model not in ALIASES:
        raise RequestError(f"model: {model} is a folder; name the GGUF file in it")
    if _looks_like_path(model):
        raise RequestError(f"model: no such file: {model}")
    return pull(model, progress=progress)


def pull(name: str, *, force: bool = False, progress: Progress | None = None) -> Path:
    """Fetch an alias or `hf:OWNER/REPO/FILE.gguf` into the cache and return its path.

    What is there already is not fetched again, unless by `force`.

    Raises:
        RequestError: the name is neither.
        PullError: it could not be fetched.
    """
    report = progress or silent
    if name in ALIASES:
        alias = ALIASES[name]
        if alias.notice and (force or not is_pulled(alias)):
            print(alias.notice, file=sys.stderr)  # whoever fetches it must be told
        return pull_alias(alias, force=force, progress=report)
    if name.startswith(PREFIX):
        return pull_hf(name, force=force, progress=report)
    raise _unknown(name)


def list_models() -> list[KnownModel]:
    """Every alias, pulled or not, then every pulled `hf:` file."""
    models = [
        KnownModel(
            name=alias.name,
            path=alias_path(alias) if is_pulled(alias) else None,
            n_bytes=alias.n_bytes,
            licence=alias.licence,
            about=alias.about,
        )
        for alias in ALIASES.values()
    ]
    for name, path in cached_files():
        models.append(KnownModel(name, path, path.stat().st_size, licence=None, about=None))
    return models


def _looks_like_path(model: str) -> bool:
    if model.startswith(PREFIX):
        return False
    return "/" in model or "\\" in model or model.endswith(".gguf")


def _unknown(name: str) -> RequestError:
    close = difflib.get_close_matches(name.lower(), ALIASES, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return RequestError(
        f"model: no file and no known model {name!r}{hint}; accepted are the path of a GGUF file, "
        f"a known name ({', '.join(ALIASES)}), or hf:OWNER/REPO/FILE.gguf"
    )
