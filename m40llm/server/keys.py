"""API keys: read from a file and the environment, compared in constant time, never shown."""

import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from m40llm.errors import RequestError

VARIABLE: Final = "M40LLM_API_KEYS"


class Keys:
    """Those that open the server; none of them: it is open to all."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def client_of(self, authorization: str | None) -> str | None:
        """Whose an "Authorization: Bearer KEY" is: the beginning of the key's hash. None: nobody's.

        Every key is compared, each in full, whichever is right.
        """
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        given, is_known = _digest(key.strip()), False
        for digest in self._digests:
            is_known |= hmac.compare_digest(given, digest)
        return given.hex()[:12] if is_known else None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def read_keys(file: str | Path | None, variable: str | None) -> tuple[str, ...]:
    """The keys of a file, one a line (those that begin with # are comments), and of the variable,
    by commas.

    RequestError where the file cannot be read, has no key, or one that no header can carry.
    """
    keys: list[str] = []
    if file is not None:
        lines = _text(Path(file)).splitlines()
        given = [line for line in lines if not line.lstrip().startswith("#")]
        keys = _checked(given, f"api_key_file: {file}")
        if not keys:
            raise RequestError(f"api_key_file: {file} has no key in it")
    if variable is not None:
        more = _checked(variable.split(","), VARIABLE)
        if not more:
            raise RequestError(f"{VARIABLE}: it is set, and has no key in it; unset it")
        keys += more
    return tuple(dict.fromkeys(keys))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise RequestError(f"api_key_file: cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RequestError(f"api_key_file: {path} is not UTF-8, at byte {error.start}") from error


def _checked(given: list[str], where: str) -> list[str]:
    keys = [key.strip() for key in given]
    for number, key in enumerate(keys, 1):
        if not all("!" <= char <= "~" for char in key):  # the key itself is not told
            raise RequestError(f"{where}: key {number}: expected ASCII without spaces")
    return [key for key in keys if key]
