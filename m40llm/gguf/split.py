"""Opening a model: one file, or the files that `gguf-split` made of it.

A part is called `NAME-00002-of-00003.gguf`; its keys `split.no` (from 0), `split.count` and
`split.tensors.count` (over all parts) say the same. The metadata that matters is in part 1.
"""

import os
import re
from pathlib import Path

from m40llm.errors import ModelFileError
from m40llm.gguf.cursor import shown
from m40llm.gguf.directory import TensorInfo
from m40llm.gguf.file import GGUFFile, Part, map_file, parse_part

_PART_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)
_MAX_PARTS = 99_999  # five digits in the name


def open_gguf(path: str | os.PathLike[str]) -> GGUFFile:
    """Opens a GGUF file, v2 or v3, little-endian; of a split model the first part opens all.

    Raises ModelFileError, with the offset, key or tensor and what was expected, for anything
    that is wrong with the file: after this call all structure and all bounds are checked.
    """
    path = Path(path)
    return _assemble(path, parse_part(map_file(path), str(path)))


def _parse(data: bytes, source: str = "<buffer>") -> GGUFFile:
    """`open_gguf` on bytes in memory, for tests: never a split model."""
    return _assemble(Path(source), parse_part(memoryview(data), source))


def _assemble(path: Path, first: Part) -> GGUFFile:
    n_parts, number = _split_keys(first)
    if n_parts <= 1:  # gguf-split --merge leaves a count of 0
        return GGUFFile(path, [first], first.tensors)
    match = _PART_NAME.fullmatch(path.name)
    if match is None or int(match["count"]) != n_parts:
        raise ModelFileError(
            f"{path}: one of {n_parts} parts (split.count), expected a name that ends in "
            f"-00001-of-{n_parts:05}.gguf"
        )
    if number != 0:
        first_name = _part_name(match["stem"], 0, n_parts)
        raise ModelFileError(
            f"{path}: part {number + 1} of {n_parts}; open the first one, {first_name}"
        )
    names = [_part_name(match["stem"], index, n_parts) for index in range(n_parts)]
    rest = [_open_part(path.with_name(names[index]), first, index) for index in range(1, n_parts)]
    parts = [first, *rest]
    return GGUFFile(path, parts, _all_tensors(path, parts))


def _part_name(stem: str, index: int, n_parts: int) -> str:
    return f"{stem}-{index + 1:05}-of-{n_parts:05}.gguf"


def _split_keys(part: Part) -> tuple[int, int]:
    """How many parts there are, and which one this is, from 0."""
    n_parts = part.metadata.get_int("split.count", 0, minimum=0, maximum=_MAX_PARTS)
    return n_parts, part.metadata.get_int("split.no", 0, minimum=0, maximum=_MAX_PARTS)


def _open_part(path: Path, first: Part, index: int) -> Part:
    part = parse_part(map_file(path), str(path), index)
    n_parts, number = _split_keys(part)
    expected, _ = _split_keys(first)
    if (n_parts, number) != (expected, index):
        raise ModelFileError(
            f"{path}: expected split.no {index} of split.count {expected}, "
            f"got {number} of {n_parts}"
        )
    return part


def _all_tensors(path: Path, parts: list[Part]) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    for part in parts:
        for name, tensor in part.tensors.items():
            if name in tensors:
                raise ModelFileError(
                    f"{path}: tensor {shown(name)} is in part {tensors[name].part + 1} "
                    f"and in part {tensor.part + 1}"
                )
            tensors[name] = tensor
    n_tensors = parts[0].metadata.get_int("split.tensors.count", len(tensors))
    if n_tensors != len(tensors):
        raise ModelFileError(
            f"{path}: key 'split.tensors.count': expected {len(tensors)}, which is what the "
            f"{len(parts)} parts hold, got {n_tensors}"
        )
    return tensors
