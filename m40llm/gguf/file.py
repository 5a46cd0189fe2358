"""GGUF files, memory-mapped and checked whole when they are opened.

    magic "GGUF"   version: u32   n_tensors: u64   n_fields: u64
    fields (fields.py)   tensor directory (directory.py)   padding   tensor data

(ggml/docs/gguf.md; versions 2 and 3 differ in nothing that little-endian files show.) After
`open_gguf` returns, every offset and length in the file was compared with the file's size.

The mapping reads the disk when a tensor is touched: a file that somebody truncates while it is
open kills the process (SIGBUS), as with every memory-mapped file.
"""

import mmap
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from m40llm.errors import ModelFileError, RequestError, UnsupportedModelError
from m40llm.gguf.cursor import Cursor, shown
from m40llm.gguf.directory import TensorInfo, count_tensors, read_directory
from m40llm.gguf.fields import count_fields, walk_fields
from m40llm.gguf.metadata import Metadata

_MAGIC = b"GGUF"
_OLD_MAGICS = {b"lmgg", b"fmgg", b"tjgg", b"algg"}  # ggml, ggmf, ggjt, ggla: before August 2023
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32  # GGUF_DEFAULT_ALIGNMENT
_MAX_ALIGNMENT = 2**31  # the largest power of two in the key's type, u32


@dataclass(frozen=True)
class Part:
    """One file, parsed: a whole model, or a piece of one that was split."""

    source: str
    data: memoryview
    version: int
    alignment: int
    metadata: Metadata
    tensors: dict[str, TensorInfo]


class GGUFFile:
    """An open model file (or all files of a split model): metadata, tensors and their bytes.

    `path` is the file that was opened, `paths` are all. Close it, or use `with`. Arrays from
    `tensor_bytes` stay valid after that: the mapping lives as long as one of them does.
    """

    def __init__(self, path: Path, parts: list[Part], tensors: dict[str, TensorInfo]) -> None:
        self.path = path
        self.paths = tuple(Path(part.source) for part in parts)
        self.version = parts[0].version
        self.alignment = parts[0].alignment
        self.metadata = parts[0].metadata
        self.tensors = tensors
        self.n_bytes = sum(len(part.data) for part in parts)
        self._parts = parts

    def tensor_bytes(self, name: str) -> NDArray[np.uint8]:
        """The tensor as it lies in the file, uint8[n_bytes]: a read-only view, never a copy.

        Raises ModelFileError where the file has no such tensor, RequestError after `close`.
        """
        tensor = self.tensors.get(name)
        if tensor is None:
            raise ModelFileError(f"{self.path}: tensor {shown(name)} is missing")
        if not self._parts:
            raise RequestError(f"{self.path}: closed, tensor {shown(name)} can no longer be read")
        data = self._parts[tensor.part].data
        view = np.frombuffer(data, np.uint8, tensor.n_bytes, tensor.offset)
        view.setflags(write=False)
        return view

    def close(self) -> None:
        """Lets go of the mapping; may be called twice."""
        for part in self._parts:
            part.metadata.close()
        self._parts = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<GGUFFile {self.path}: {len(self.metadata)} keys, {len(self.tensors)} tensors>"


def parse_part(data: memoryview, source: str, part: int = 0) -> Part:
    """Checks one file's bytes from the magic to the last tensor; `source` names it in errors."""
    with _naming(source):
        cursor = Cursor(data)
        version = _read_magic_and_version(cursor)
        n_tensors = count_tensors(cursor)
        n_fields = count_fields(cursor)
        metadata = Metadata(cursor.data, walk_fields(cursor, n_fields), source)
    alignment = metadata.get_int(
        "general.alignment", _DEFAULT_ALIGNMENT, minimum=1, maximum=_MAX_ALIGNMENT
    )
    if alignment & (alignment - 1):
        metadata.refuse("general.alignment", "a power of two", f"{alignment}")
    with _naming(source):
        tensors = read_directory(cursor, n_tensors, alignment, part)
    return Part(source, cursor.data, version, alignment, metadata, tensors)


def map_file(path: Path) -> memoryview:
    """The file's bytes, mapped read-only. ModelFileError where there is no such plain file."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ModelFileError(f"{path}: a directory, expected a GGUF file")
        if not stat.S_ISREG(mode):  # opening a pipe would wait for a writer for ever
            raise ModelFileError(f"{path}: not a regular file, expected a GGUF file")
        with path.open("rb") as file:
            if file.seek(0, 2) == 0:
                raise ModelFileError(f"{path}: the file is empty, expected a GGUF file")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # a NUL in the name
        raise ModelFileError(f"{str(path)!r}: cannot be read: {error}") from None


def _read_magic_and_version(cursor: Cursor) -> int:
    cursor.need(len(_MAGIC), "magic 'GGUF'")
    magic = bytes(cursor.data[:4])
    if magic in _OLD_MAGICS:
        raise UnsupportedModelError(
            f"not GGUF but its forerunner {magic[::-1]!r}: convert the model again"
        )
    if magic != _MAGIC:
        raise ModelFileError(
            f"not a GGUF file: expected it to start with {_MAGIC!r}, got {magic!r}"
        )
    cursor.skip(4, "magic")
    version = cursor.u32("GGUF version")
    if version and version & 0xFFFF == 0:  # the version's low byte came last
        raise UnsupportedModelError(
            "a big-endian GGUF file, expected a little-endian one: convert it with "
            "`gguf-convert-endian` of the gguf package"
        )
    if version not in _VERSIONS:
        raise UnsupportedModelError(
            f"GGUF version {version} at offset 4: expected 2 or 3"
            + (" (1 was replaced in August 2023: convert the model again)" if version == 1 else "")
        )
    return version


@contextmanager
def _naming(source: str) -> Iterator[None]:
    """Puts the file's name before the text of a ModelFileError, whatever its kind."""
    try:
        yield
    except ModelFileError as error:
        raise type(error)(f"{source}: {error}") from None
