"""Dequantise: the weights of a matrix from its first_row on, as gguf.quants has them."""

import numpy as np
from gguf import GGMLQuantizationType as GGMLType
from numpy.typing import NDArray

from m40llm.gguf.blocks import dequantize


def dequantize_rows(type: GGMLType, data: NDArray[np.uint8], first_row: int) -> NDArray[np.float32]:
    """data uint8[n_rows, row_bytes] of the file -> float32[n_rows - first_row, n_cols]"""
    return np.asarray(dequantize(type, data[first_row:]), np.float32)
