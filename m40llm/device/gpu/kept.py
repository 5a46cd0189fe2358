"""A file's matrices and tables as a card keeps them, still on the host."""

from collections.abc import Sequence

import numpy as np
from gguf import GGMLQuantizationType as GGMLType
from numpy.typing import NDArray

from m40llm.device.gpu import held
from m40llm.device.ops import MatrixData
from m40llm.gguf.blocks import dequantize
from m40llm.kernels.planes import Planes, from_blocks

Bytes = NDArray[np.uint8]


def planes_of(matrix: MatrixData) -> Planes:
    """On the host, in the type that the card holds."""
    n_rows, n_cols = matrix.n_rows, matrix.n_cols
    kept = held.held_matrix(matrix.ggml_type, n_cols)
    data = converted(matrix.ggml_type, kept, n_rows, matrix.data)
    return from_blocks(kept, n_rows, n_cols, data)


def stacked(parts: Sequence[Planes]) -> Planes:
    """All rows of matrices of one type and width."""
    first = parts[0]
    return Planes(
        first.type,
        first.n_cols,
        np.concatenate([part.quants for part in parts]),
        None if first.highs is None else np.concatenate([part.highs for part in parts]),
        None if first.scales is None else np.concatenate([part.scales for part in parts]),
    )


def converted(given: GGMLType, kept: GGMLType, n_rows: int, data: Bytes) -> Bytes:
    """The file's bytes as the type that is kept: the same, or dequantised and rounded once."""
    if given == kept:
        return data
    dtype = np.float16 if kept == GGMLType.F16 else np.float32
    return dequantize(given, data.reshape(n_rows, -1)).astype(dtype).view(np.uint8)
