"""Weights for the matrix products: exact ones, ordinary ones, and their bounds."""

from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as GGMLType
from gguf.quants import quantize
from numpy.typing import NDArray

from m40llm.fuzz.blocks import random_tensor
from m40llm.fuzz.bounds import gamma
from m40llm.fuzz.contents import integers
from m40llm.gguf.blocks import FORMATS, dequantize
from m40llm.kernels.layouts import DENSE, LAYOUTS, VALUES_OF
from m40llm.kernels.planes import Planes, from_blocks, to_blocks
from m40llm.kernels.scales import BIAS, has_offset

QUANTISED = tuple(LAYOUTS)
Array = NDArray[Any]


def integer_blocks(
    rng: np.random.Generator, ggml_type: GGMLType, n_rows: int, n_cols: int
) -> Array:
    """uint8[n_rows, row_bytes] of integer weights: any quants, with FP16 scales of 1."""
    if ggml_type in DENSE:
        return np.asarray(quantize(integers(rng, n_rows, n_cols), ggml_type).view(np.uint8))
    block = FORMATS[ggml_type]
    blocks = rng.integers(0, 256, (n_rows * n_cols // block.n_weights, block.n_bytes), np.uint8)
    _set_to_one(ggml_type, blocks[:, LAYOUTS[ggml_type].head])
    return blocks.reshape(n_rows, -1)


def _set_to_one(ggml_type: GGMLType, head: Array) -> None:
    """The scales of blocks."""
    if ggml_type == GGMLType.MXFP4:
        head[:] = 128  # the exponent of 1, of values that the table doubles
        return
    if ggml_type == GGMLType.IQ4_XS:
        head = head[:, :2]  # what follows are scales of parts
    head[:, 0::2] = 0x00  # little-endian FP16 1.0 is 00 3C
    head[:, 1::2] = 0x3C


def normal_blocks(rng: np.random.Generator, ggml_type: GGMLType, n_rows: int, n_cols: int) -> Array:
    """uint8[n_rows, row_bytes] of weights with a spread of 1."""
    data = random_tensor(rng, (n_rows, n_cols), 1.0, ggml_type)
    return np.ascontiguousarray(data).view(np.uint8).reshape(n_rows, -1)


def upload(launcher: Any, planes: Planes) -> Planes:
    """The planes on the launcher's device, which refuses to write to them."""
    arrays = (
        None if plane is None else launcher.upload(plane, read_only=True)
        for plane in (planes.quants, planes.highs, planes.scales)
    )
    return Planes(planes.type, planes.n_cols, *arrays)


def planes_and_weights(
    launcher: Any, ggml_type: GGMLType, data: Array, n_cols: int
) -> tuple[Planes, Array]:
    """A matrix on the device, and as float32[n_rows, n_cols]."""
    planes = from_blocks(ggml_type, len(data), n_cols, data)
    return upload(launcher, planes), dequantize(ggml_type, data)


def error_bound(ggml_type: GGMLType, data: Array, x: Array) -> Array:
    """Of x W^T in FP32, any order: each weight as scale * quant + offset, two terms of the sum.

    The offset is what the weight would be with its quant, as it is stored, zero. A term is
    rounded once for each later addition, and at most 8 times in scales, offsets and sums of x.
    """
    weights = dequantize(ggml_type, data).astype(np.float64)
    offset = offsets(ggml_type, data, weights.shape[1])
    magnitude = np.abs(x).astype(np.float64) @ (np.abs(weights - offset) + np.abs(offset)).T
    return np.asarray(gamma(weights.shape[1] + 8) * magnitude)


def offsets(ggml_type: GGMLType, data: Array, n_cols: int) -> Array:
    """float64[n_rows, n_cols]: what each weight would be with its quant, as unpacked, zero."""
    if not has_offset(ggml_type):
        return np.zeros((len(data), n_cols))
    if ggml_type in VALUES_OF:  # the table's largest value, times what makes it the offset
        values, blocks = np.array(VALUES_OF[ggml_type]), data.copy()
        largest = int(np.abs(values).argmax())
        of_block = blocks.reshape(-1, FORMATS[ggml_type].n_bytes)
        of_block[:, LAYOUTS[ggml_type].quants] = 0x11 * largest
        ratio = -BIAS[ggml_type] / float(values[largest])
        return ratio * dequantize(ggml_type, blocks).astype(np.float64)
    planes = from_blocks(ggml_type, len(data), n_cols, data)
    highs = None if planes.highs is None else np.zeros_like(planes.highs)
    quants = np.zeros_like(planes.quants)
    same = Planes(ggml_type, planes.n_cols, quants, highs, planes.scales)
    return dequantize(ggml_type, to_blocks(same)).astype(np.float64)
