"""A model file written again with its matrices in other types, in one file or in parts.

Values are those of the `gguf` package's own quantisers (gguf.quants, kept by llama.cpp), which
round as llama.cpp's reference code does, or in Q4_K, Q5_K and Q6_K those of k_quants. What gets
which type: recipes.py. The new file, or all its parts, appear whole or not at all.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
from gguf import GGMLQuantizationType as GGMLType
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from gguf.quants import quantize as gguf_quantize
from numpy.typing import NDArray

from m40llm.errors import ModelFileError, RequestError
from m40llm.gguf.blocks import dequantize, row_bytes
from m40llm.gguf.directory import TensorInfo
from m40llm.gguf.file import GGUFFile
from m40llm.gguf.k_quants import K_QUANTS, quantize_k
from m40llm.gguf.recipes import Recipe
from m40llm.progress import Progress

_WEIGHTS_AT_ONCE: Final = 1 << 24  # 64 MB of FP32: the memory that a large tensor takes
_REWRITTEN: Final = ("general.architecture", "general.alignment")


@dataclass
class Written:
    """What came of it. Bytes are of tensors; `error` sums squares, over those of the weights."""

    paths: list[Path] = field(default_factory=list)
    n_bytes_before: int = 0
    n_bytes_after: int = 0
    types: dict[str, int] = field(default_factory=dict)  # of the new file: tensors of each
    fallbacks: list[str] = field(default_factory=list)  # matrices of another type
    sum_error_sq: float = 0.0
    sum_weight_sq: float = 0.0

    @property
    def relative_error(self) -> float:
        """Root mean square error of what was rounded over the root mean square of its weights."""
        return math.sqrt(self.sum_error_sq / self.sum_weight_sq) if self.sum_weight_sq else 0.0


def quantize_file(
    file: GGUFFile,
    path: Path,
    recipe: Recipe,
    progress: Progress | None = None,
    *,
    part_bytes: int = 0,
    replace: bool = True,
) -> Written:
    """Writes `file`, whose metadata stay but for the type, to `path`; with `part_bytes` to parts
    of so many bytes of tensors at most, NAME-00001-of-00003.gguf for NAME.gguf.

    Raises ModelFileError for a weight that is no finite number, RequestError for one beyond the
    new type's range, for a path that cannot be written, and for one that is there if it may not
    be replaced.
    """
    writer = GGUFWriter(None, file.metadata.get_str("general.architecture"))
    writer.split_max_size = part_bytes
    written, new_types = _planned(writer, file, recipe)
    if len(writer.tensors) == 1:
        writer.split_max_size = 0  # else it warns that it does not split
    elif path.suffix != ".gguf":
        path = path.with_name(f"{path.name}.gguf")  # what follows the last dot gives way to numbers
    written.paths = writer.format_shard_names(path)
    _check_paths(written.paths, file, replace)
    _add_metadata(writer, file, recipe)
    try:
        with TemporaryDirectory(suffix=".part", prefix=path.stem, dir=path.parent) as folder:
            _write(writer, file, Path(folder, path.name), new_types, written, progress)
            for final in reversed(written.paths):  # the first part, which opens all, comes last
                Path(folder, final.name).replace(final)
    except OSError as error:
        raise RequestError(f"{path}: cannot be written: {error.strerror or error}") from None
    return written


def _planned(
    writer: GGUFWriter, file: GGUFFile, recipe: Recipe
) -> tuple[Written, dict[str, GGMLType]]:
    """The new file's directory, in the writer, and each tensor's type."""
    arch, written = file.metadata.get_str("general.architecture"), Written()
    n_layers = file.metadata.get_int(f"{arch}.block_count", 0)
    n_experts = file.metadata.get_int(f"{arch}.expert_count", 0)
    types = recipe.types(file.tensors, n_layers, n_experts)
    for name, (new, wanted) in types.items():
        info = file.tensors[name]
        n_bytes = info.n_rows * row_bytes(new, info.shape[-1])
        writer.add_tensor_info(name, info.shape, np.dtype(np.float32), n_bytes, new)
        written.n_bytes_before += info.n_bytes
        written.n_bytes_after += n_bytes
        written.types[new.name] = written.types.get(new.name, 0) + 1
        if new != wanted:
            written.fallbacks.append(name)
    return written, {name: new for name, (new, _) in types.items()}


def _check_paths(paths: list[Path], file: GGUFFile, replace: bool) -> None:
    for path in paths:
        if not path.exists():
            continue
        if any(path.samefile(source) for source in file.paths):
            raise RequestError(f"{path}: expected another file than the one that is read")
        if path.is_dir():
            raise RequestError(f"{path}: a directory, expected a file to write")
        if not replace:
            raise RequestError(f"{path} is there already; --force replaces it")


def _write(
    writer: GGUFWriter,
    file: GGUFFile,
    path: Path,
    new_types: dict[str, GGMLType],
    written: Written,
    progress: Progress | None,
) -> None:
    n_done, n_all = 0, sum(info.n_elements for info in file.tensors.values())
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, info in file.tensors.items():
            writer.write_tensor_data(_converted(file, info, new_types[name], written))
            n_done += info.n_elements
            if progress:
                progress("quantising", n_done / max(n_all, 1))
    finally:
        writer.close()


def _add_metadata(writer: GGUFWriter, file: GGUFFile, recipe: Recipe) -> None:
    """All keys of the file in its order; those of a split model's parts are left out."""
    for key in GGUFReader(file.path).fields.values():
        if key.name in _REWRITTEN or key.name.startswith(("GGUF.", "split.")):
            continue
        if key.name == "general.file_type" and recipe.file_type is not None:
            continue
        is_array = key.types[0] == GGUFValueType.ARRAY
        items = key.types[-1] if is_array else None
        writer.add_key_value(key.name, key.contents(), key.types[0], items)
    # Only the first part would have the key, and all of them would need it.
    if file.alignment != writer.data_alignment and len(writer.tensors) == 1:
        writer.add_custom_alignment(file.alignment)
    if recipe.file_type is not None:
        writer.add_file_type(recipe.file_type)


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
