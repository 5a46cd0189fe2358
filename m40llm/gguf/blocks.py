"""Every GGML block format: how many bytes a row takes, and what its bytes mean as FP32.

A tensor's row (its innermost dimension) is a run of blocks: `n_weights` weights in `n_bytes`
bytes. F32, F16 and the integers are blocks of one weight.

The numbers and the dequantisers are those of the `gguf` package, which llama.cpp keeps beside
its own C code (ggml-quants.c): "bit for bit as that package defines it". Importing it takes
0.1 s more than NumPy alone, and its `constants` cannot be had without the rest of it.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize as gguf_dequantize
from numpy.typing import NDArray

from m40llm.errors import KernelContractError, ModelFileError, UnsupportedModelError


@dataclass(frozen=True)
class BlockFormat:
    """One GGML type: a block is `n_weights` weights in `n_bytes` bytes."""

    type: GGMLQuantizationType
    n_weights: int
    n_bytes: int


FORMATS: dict[GGMLQuantizationType, BlockFormat] = {
    type_: BlockFormat(type_, n_weights, n_bytes)
    for type_, (n_weights, n_bytes) in GGML_QUANT_SIZES.items()
}

# What gguf.quants leaves out because NumPy already has the type.
_NUMPY_TYPES: dict[GGMLQuantizationType, type[np.generic]] = {
    GGMLQuantizationType.F64: np.float64,
    GGMLQuantizationType.I8: np.int8,
    GGMLQuantizationType.I16: np.int16,
    GGMLQuantizationType.I32: np.int32,
    GGMLQuantizationType.I64: np.int64,
}


def row_bytes(type: GGMLQuantizationType, n: int) -> int:
    """Bytes of a row of `n` weights; ModelFileError where `n` is no whole number of blocks."""
    block = FORMATS[type]
    if n % block.n_weights:
        raise ModelFileError(
            f"row length {n}: expected a multiple of {type.name}'s block of {block.n_weights}"
        )
    return n // block.n_weights * block.n_bytes


@cache
def can_dequantize(type: GGMLQuantizationType) -> bool:
    """Whether `dequantize` knows the type. It asks gguf.quants with one block of zeros."""
    if type in _NUMPY_TYPES:
        return True
    try:
        gguf_dequantize(np.zeros((1, FORMATS[type].n_bytes), np.uint8), type)
    except NotImplementedError:
        return False
    return True


def dequantize(type: GGMLQuantizationType, data: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Weights of whole rows: uint8[..., row_bytes] -> float32[..., n].

    F32 comes back as a view of `data` (read-only where `data` is); every other type as a new
    array. Values are what the file holds, NaN and infinity included, with no warning.

    Raises UnsupportedModelError for a type that cannot be dequantised, with those that can;
    KernelContractError where `data` is not uint8 or its rows are not whole blocks.
    """
    block = FORMATS[type]
    if data.dtype != np.uint8 or data.ndim == 0 or data.shape[-1] % block.n_bytes:
        raise KernelContractError(
            f"data: expected uint8[..., rows of a multiple of {block.n_bytes}] for {type.name}, "
            f"got {data.dtype}{list(data.shape)}"
        )
    if not can_dequantize(type):
        works = ", ".join(known.name for known in FORMATS if can_dequantize(known))
        raise UnsupportedModelError(f"type {type.name} cannot be dequantised; these can: {works}")
    shape = (*data.shape[:-1], data.shape[-1] // block.n_bytes * block.n_weights)
    if data.size == 0:
        return np.empty(shape, np.float32)
    return _convert(type, np.ascontiguousarray(data)).reshape(shape)


def _convert(type: GGMLQuantizationType, data: NDArray[np.uint8]) -> NDArray[np.float32]:
    with np.errstate(all="ignore"):  # a scale of infinity is the file's, not ours
        if type in _NUMPY_TYPES:
            return data.view(_NUMPY_TYPES[type]).astype(np.float32)
        weights: NDArray[np.float32] = gguf_dequantize(data, type)
        return weights


def split_fields(data: NDArray[np.uint8], n_bits: int) -> NDArray[np.uint8]:
    """Fields of n_bits, lowest first: uint8[..., n] -> uint8[..., 8 / n_bits, n]."""
    shifts = np.arange(0, 8, n_bits, dtype=np.uint8)[:, None]
    return (data[..., None, :] >> shifts) & np.uint8((1 << n_bits) - 1)


def join_fields(fields: NDArray[np.uint8], n_bits: int) -> NDArray[np.uint8]:
    """The inverse of split_fields: uint8[..., 8 / n_bits, n] -> uint8[..., n]."""
    shifts = np.arange(0, 8, n_bits, dtype=np.uint8)[:, None]
    joined: NDArray[np.uint8] = np.bitwise_or.reduce(fields << shifts, axis=-2)
    return joined


def pack_codes(scales: NDArray[Any], minimums: NDArray[Any]) -> NDArray[np.uint8]:
    """uint8[n_blocks, 12] of eight scales and eight minimums, 6 bits each (Q4_K, Q5_K).

    Four bytes have the first four scales, four the first four minimums; their two free bits are
    the high bits of the last four, whose low bits are in the last four bytes.
    """
    first = [codes[:, :4] | codes[:, 4:] >> 4 << 6 for codes in (scales, minimums)]
    last = (scales[:, 4:] & 15) | minimums[:, 4:] << 4
    return np.concatenate((*first, last), axis=1)
