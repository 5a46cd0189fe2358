"""Instructions of a decode program with buffers and planes in place of names."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from m40llm.kernels.planes import Planes
from m40llm.kernels.program.form import Form, is_sliced, stage_cols
from m40llm.kernels.program.state import DecodeState

Buffer = Any


def address(buffer: Any) -> int:
    """Where a buffer begins, on its card."""
    return int(buffer.ctypes.data if isinstance(buffer, np.ndarray) else buffer.address)


@dataclass(frozen=True)
class Product:
    """One matrix product of a program: buffers and planes in place of names.

    angles  that Q and K are turned by, see bind.angles_on
    factor  that results are multiplied by, before the bias is added
    cols    the columns that it takes, where a matrix is shared by several instructions that add
    """

    effect: str
    w: Planes
    x: Buffer
    out: Buffer | None = None
    norm: Buffer | None = None
    bias: Buffer | None = None
    first_row: int = 0
    angles: Buffer | None = None
    factor: float = 1.0
    cols: range | None = None

    @property
    def of_cols(self) -> range:
        return range(self.w.n_cols) if self.cols is None else self.cols


def in_parts(product: Product, n_seqs: int) -> list[Product]:
    """The product as up to four that add, each of columns of x that find room in shared memory, if
    that lets the next instruction finish its results."""
    cols = stage_cols(product.w.n_cols, n_seqs, product.norm is not None)
    starts = range(0, product.w.n_cols, cols)
    adds = product.effect == "add" and product.norm is None and not is_sliced(n_seqs)
    if not adds or not 1 < len(starts) <= 4:
        return [product]
    parts = [range(start, min(start + cols, product.w.n_cols)) for start in starts]
    return [
        replace(product, cols=part, bias=None if part.start else product.bias) for part in parts
    ]


@dataclass(frozen=True)
class Other:
    """Any other instruction.

    q_norm, k_norm  of ATTEND, with the angles that it turns Q and K by; None if they come turned
    window          of ATTEND: keys that a row sees, 0 for all
    norm            of ADD_NORMED
    factor          that embeddings, or what ADD_NORMED adds, are multiplied by
    """

    operation: int
    x: Buffer | None = None
    out: Buffer | None = None
    k_cache: Buffer | None = None
    v_cache: Buffer | None = None
    q_norm: Buffer | None = None
    k_norm: Buffer | None = None
    angles: Buffer | None = None
    window: int = 0
    norm: Buffer | None = None
    factor: float = 1.0


@dataclass(frozen=True)
class Setting:
    """What all instructions of a program share.

    table   uint8[vocab_size, row_bytes]: the embedding, the file's own bytes, of form.table_type
    scale   of attention's scores
    parts   buffers, see new_parts; None if the products of this form are not sliced
    """

    form: Form
    state: DecodeState
    table: Buffer
    eps: float
    scale: float
    max_seq_len: int
    parts: tuple[Buffer, ...] | None = None
