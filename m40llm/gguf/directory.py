"""The tensor directory of a GGUF file: what tensors there are, of what type, and where.

    name: string   n_dims: u32   dims: u64[n_dims], innermost first   type: u32   offset: u64

(ggml/docs/gguf.md.) Offsets count from the data section, which starts at the next multiple of
the file's alignment behind the directory.
"""

from dataclasses import dataclass
from itertools import pairwise
from math import prod

from gguf import GGMLQuantizationType

from m40llm.errors import ModelFileError, UnsupportedModelError
from m40llm.gguf.blocks import FORMATS, row_bytes
from m40llm.gguf.cursor import Cursor, shown

_MAX_DIMS = 4  # GGML_MAX_DIMS
_LEAST_INFO_BYTES = 32  # an empty name (8), a count (4), one dimension (8), type (4), offset (8)


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file; its bytes were checked to lie within the file."""

    name: str
    type: GGMLQuantizationType
    shape: tuple[int, ...]  # NumPy order: outermost first, 1 to 4 dimensions, none of them 0
    offset: int  # of the first byte, from the start of the part that holds it
    part: int = 0  # 0 but for split models

    @property
    def n_elements(self) -> int:
        """Weights in the tensor."""
        return prod(self.shape)

    @property
    def n_rows(self) -> int:
        """Rows of all dimensions but the innermost."""
        return prod(self.shape[:-1])

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, which is the innermost dimension."""
        return row_bytes(self.type, self.shape[-1])

    @property
    def n_bytes(self) -> int:
        """Bytes of the whole tensor; rows follow one another without gaps."""
        return self.n_rows * self.row_bytes


def count_tensors(cursor: Cursor) -> int:
    """Reads how many tensors the file claims; refuses more than its bytes can hold."""
    return cursor.count(_LEAST_INFO_BYTES, "count of tensors")


def read_directory(
    cursor: Cursor, n_tensors: int, alignment: int, part: int
) -> dict[str, TensorInfo]:
    """Reads and checks `n_tensors` entries: names, types, shapes, offsets, overlaps."""
    entries = [_read_entry(cursor, index, n_tensors) for index in range(n_tensors)]
    data_start = -(-cursor.pos // alignment) * alignment
    tensors: dict[str, TensorInfo] = {}
    for name, type_, shape, offset in entries:
        where = f"tensor {shown(name)}"
        if name in tensors:
            raise ModelFileError(f"{where}: the file has it twice")
        if offset % alignment:
            raise ModelFileError(
                f"{where}: expected an offset that is a multiple of the alignment {alignment}, "
                f"got {offset}"
            )
        tensor = TensorInfo(name, type_, shape, data_start + offset, part)
        _check_end(tensor, len(cursor.data), where)
        tensors[name] = tensor
    _check_overlaps(tensors)
    return tensors


def _read_entry(
    cursor: Cursor, index: int, n_tensors: int
) -> tuple[str, GGMLQuantizationType, tuple[int, ...], int]:
    name = cursor.string(f"name of tensor {index} of {n_tensors}")
    where = f"tensor {shown(name)}"
    n_dims = cursor.u32(f"{where}, count of dimensions")
    if not 1 <= n_dims <= _MAX_DIMS:
        raise ModelFileError(f"{where}: expected 1 to {_MAX_DIMS} dimensions, got {n_dims}")
    dims = [cursor.u64(f"{where}, dimension {d}") for d in range(n_dims)]
    if 0 in dims:
        raise ModelFileError(f"{where}: expected no dimension of 0, got {dims} (innermost first)")
    number = cursor.u32(f"{where}, type")
    offset = cursor.u64(f"{where}, offset")
    return name, _tensor_type(number, where), tuple(reversed(dims)), offset


def _tensor_type(number: int, where: str) -> GGMLQuantizationType:
    try:
        type_ = GGMLQuantizationType(number)
    except ValueError:
        type_ = None
    if type_ not in FORMATS:
        known = ", ".join(f"{known.name} ({known.value})" for known in FORMATS)
        raise UnsupportedModelError(f"{where}: type {number} is unknown; known are {known}")
    return type_


def _check_end(tensor: TensorInfo, file_bytes: int, where: str) -> None:
    try:
        n_bytes = tensor.n_bytes
    except ModelFileError as error:
        raise ModelFileError(f"{where}: {error}") from None
    if tensor.offset + n_bytes > file_bytes:
        raise ModelFileError(
            f"{where}: {tensor.type.name}{list(tensor.shape)} needs {n_bytes} bytes at offset "
            f"{tensor.offset}, but the file ends at {file_bytes}"
        )


def _check_overlaps(tensors: dict[str, TensorInfo]) -> None:
    by_offset = sorted(tensors.values(), key=lambda tensor: tensor.offset)
    for low, high in pairwise(by_offset):
        if low.offset + low.n_bytes > high.offset:
            raise ModelFileError(
                f"tensor {shown(high.name)} at offset {high.offset} overlaps tensor "
                f"{shown(low.name)}, which ends at {low.offset + low.n_bytes}"
            )
