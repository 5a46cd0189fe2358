"""In which type a card holds a tensor: its own where a kernel reads that one, else F16 or F32."""

from typing import Final

from gguf import GGMLQuantizationType as GGMLType

from m40llm.gguf.blocks import row_bytes
from m40llm.kernels.layouts import DENSE, LAYOUTS

_GATHERED: Final = {*LAYOUTS, *DENSE, GGMLType.BF16}  # whose rows the kernel `embedding` reads


def held_matrix(ggml_type: GGMLType, n_cols: int) -> GGMLType:
    """Of a matrix.

    BF16 becomes F32, since F16 has not its range; so does F16 where its rows are no multiple of
    the 16 bytes that a load takes.
    """
    if ggml_type in LAYOUTS or ggml_type == GGMLType.F32:
        return ggml_type
    if ggml_type == GGMLType.BF16 or n_cols % 8:
        return GGMLType.F32
    return GGMLType.F16


def held_table(ggml_type: GGMLType) -> GGMLType:
    """Of an embedding, whose rows are read one by one."""
    return ggml_type if ggml_type in _GATHERED else GGMLType.F16


def matrix_bytes(ggml_type: GGMLType, n_rows: int, n_cols: int) -> int:
    """Bytes that a matrix takes."""
    return n_rows * row_bytes(held_matrix(ggml_type, n_cols), n_cols)


def table_bytes(ggml_type: GGMLType, n_rows: int, n_cols: int, *, is_tied: bool) -> int:
    """Bytes of an embedding: apart from the output matrix also where they are tied, which is in
    planes."""
    return n_rows * row_bytes(held_table(ggml_type), n_cols)
