"""A model file written again with its matrices in another type.

Values are those of the `gguf` package's own quantisers (gguf.quants, kept by llama.cpp), which
round as llama.cpp's reference code does, or in Q4_K, Q5_K and Q6_K those of k_quants. Vectors,
and what routes experts, stay as they are; a matrix whose rows are no whole number of blocks
becomes F16, or stays if that is smaller. The file appears whole or not at all.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from gguf import GGMLQuantizationType as GGMLType
from gguf import GGUFReader, GGUFValueType, GGUFWriter, LlamaFileType
from gguf.quants import quantize as gguf_quantize
from numpy.typing import NDArray

from m40llm.errors import ModelFileError, RequestError
from m40llm.gguf.blocks import FORMATS, can_dequantize, dequantize, row_bytes
from m40llm.gguf.directory import TensorInfo
from m40llm.gguf.file import GGUFFile
from m40llm.gguf.k_quants import K_QUANTS, quantize_k
from m40llm.progress import Progress

_WEIGHTS_AT_ONCE: Final = 1 << 24  # 64 MB of FP32: the memory that a large tensor takes
_UNTOUCHED: Final = ("ffn_gate_inp.weight",)  # llama.cpp keeps the router of experts, too
_REWRITTEN: Final = ("general.architecture", "general.alignment", "general.file_type")
_FILE_TYPES: Final = {  # where that is not MOSTLY_ and the type's name
    GGMLType.F32: "ALL_F32",
    GGMLType.MXFP4: "MOSTLY_MXFP4_MOE",
    GGMLType.Q4_K: "MOSTLY_Q4_K_S",
    GGMLType.Q5_K: "MOSTLY_Q5_K_S",
}


@dataclass
class Written:
    """What came of it. Bytes are of tensors; `error` sums squares, over those of the weights."""

    n_bytes_before: int = 0
    n_bytes_after: int = 0
    types: dict[str, int] = field(default_factory=dict)  # of the new file: tensors of each
    fallbacks: list[str] = field(default_factory=list)  # matrices of another type
    sum_error_sq: float = 0.0
    sum_weight_sq: float = 0.0

    @property
    def relative_error(self) -> float:
        """Root mean square error of the matrices over the root mean square of their weights."""
        return math.sqrt(self.sum_error_sq / self.sum_weight_sq) if self.sum_weight_sq else 0.0


@cache
def quantizable() -> dict[str, GGMLType]:
    """The types that can be written, by name; gguf.quants is asked with a block of zeros each."""
    return {type.name: type for type in FORMATS if _can_quantize(type)}


def _can_quantize(type: GGMLType) -> bool:
    if type in K_QUANTS:
        return True
    try:
        gguf_quantize(np.zeros((1, FORMATS[type].n_weights), np.float32), type)
    except NotImplementedError:
        return False
    return can_dequantize(type)


def quantized_type(name: str) -> GGMLType:
    """RequestError for a name that is none, with those that are."""
    types = quantizable()
    if name.upper() not in types:
        raise RequestError(f"type: expected one of {', '.join(types)}, got {name!r}")
    return types[name.upper()]


def quantize_file(
    file: GGUFFile, path: Path, type: GGMLType, progress: Progress | None = None
) -> Written:
    """Writes `file`, whose metadata stay but for the type, to `path`; a file there is replaced.

    Raises ModelFileError for a weight that is no finite number, RequestError for one beyond the
    new type's range or a path that cannot be written.
    """
    if path.exists() and path.samefile(file.path):
        raise RequestError(f"{path}: expected another file than the one that is read")
    unfinished = path.with_name(f"{path.name}.part")
    try:
        written = _write(file, unfinished, type, progress)
        unfinished.replace(path)
    except OSError as error:
        raise RequestError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        unfinished.unlink(missing_ok=True)
    return written


def _write(file: GGUFFile, path: Path, type: GGMLType, progress: Progress | None) -> Written:
    writer = GGUFWriter(path, file.metadata.get_str("general.architecture"))
    written = Written()
    try:
        _add_metadata(writer, file, type)
        new_types = [(info, _new_type(info, type)) for info in file.tensors.values()]
        for info, new in new_types:
            _count(written, info, new, type)
            n_bytes = _n_bytes(info, new)
            writer.add_tensor_info(info.name, info.shape, np.dtype(np.float32), n_bytes, new)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        n_done, n_all = 0, sum(info.n_elements for info in file.tensors.values())
        for info, new in new_types:
            writer.write_tensor_data(_converted(file, info, new, written))
            n_done += info.n_elements
            if progress:
                progress("quantising", n_done / max(n_all, 1))
    finally:
        writer.close()
    return written


def _add_metadata(writer: GGUFWriter, file: GGUFFile, type: GGMLType) -> None:
    """All keys of the file in its order; those of a split model's parts are left out."""
    for key in GGUFReader(file.path).fields.values():
        if key.name in _REWRITTEN or key.name.startswith(("GGUF.", "split.")):
            continue
        is_array = key.types[0] == GGUFValueType.ARRAY
        items = key.types[-1] if is_array else None
        writer.add_key_value(key.name, key.contents(), key.types[0], items)
    if file.alignment != writer.data_alignment:
        writer.add_custom_alignment(file.alignment)
    writer.add_file_type(LlamaFileType[_FILE_TYPES.get(type, f"MOSTLY_{type.name}")])


def _is_matrix(info: TensorInfo) -> bool:
    return len(info.shape) >= 2 and not info.name.endswith(_UNTOUCHED)


def _new_type(info: TensorInfo, type: GGMLType) -> GGMLType:
    if not _is_matrix(info) or info.type == type:
        return info.type
    if info.shape[-1] % FORMATS[type].n_weights == 0:
        return type
    return min(info.type, GGMLType.F16, key=lambda each: _n_bytes(info, each))


def _n_bytes(info: TensorInfo, type: GGMLType) -> int:
    return info.n_rows * row_bytes(type, info.shape[-1])


def _count(written: Written, info: TensorInfo, new: GGMLType, wanted: GGMLType) -> None:
    written.n_bytes_before += info.n_bytes
    written.n_bytes_after += _n_bytes(info, new)
    written.types[new.name] = written.types.get(new.name, 0) + 1
    if new != wanted and _is_matrix(info):
        written.fallbacks.append(info.name)


def _converted(
    file: GGUFFile, info: TensorInfo, new: GGMLType, written: Written
) -> NDArray[np.uint8]:
    data = file.tensor_bytes(info.name)
    if new == info.type:
        return data
    n_rows, row = info.n_rows, row_bytes(new, info.shape[-1])
    out = np.empty((n_rows, row), np.uint8)
    for first, weights in _pieces(data.reshape(n_rows, -1), info):
        out[first : first + len(weights)] = piece = _quantized(weights, new)
        again = dequantize(new, piece)
        if not np.isfinite(again).all():
            raise RequestError(
                f"type: {new.name} cannot hold the weights of {info.name}; BF16 and F32 can"
            )
        _add_error(written, weights, again)
    return out


def _pieces(data: NDArray[np.uint8], info: TensorInfo) -> Iterator[tuple[int, Any]]:
    """(first row, float32[n_rows, n_cols]) of as many rows at a time as memory shall hold."""
    n_rows = max(1, _WEIGHTS_AT_ONCE // info.shape[-1])
    for first in range(0, len(data), n_rows):
        weights = dequantize(info.type, data[first : first + n_rows])
        if not np.isfinite(weights).all():
            raise ModelFileError(f"tensor {info.name}: a weight is no finite number")
        yield first, weights


def _quantized(weights: NDArray[np.float32], type: GGMLType) -> NDArray[np.uint8]:
    if type in K_QUANTS:
        return quantize_k(weights, type)
    with np.errstate(all="ignore"):  # a block of zeros divides by its scale of zero
        return np.ascontiguousarray(gguf_quantize(weights, type)).view(np.uint8)


def _add_error(written: Written, weights: Any, again: NDArray[np.float32]) -> None:
    exact = weights.astype(np.float64)
    written.sum_error_sq += float(((again - exact) ** 2).sum())
    written.sum_weight_sq += float((exact**2).sum())
