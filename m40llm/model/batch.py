"""Batch: the rows of one forward pass, of several sequences, prefill and decode together."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from m40llm.errors import KernelContractError

Ints = NDArray[np.int32]


@dataclass(frozen=True)
class Batch:
    """Token ids with their sequence and position; the rows of a sequence stand together.

    token_ids, seq, pos  int32[n_tokens]
    logit_rows           int32[n_logits]  the rows whose logits are wanted
    is_decode            a row a sequence, but for rows that are repeated
    """

    token_ids: Ints
    seq: Ints
    pos: Ints
    logit_rows: Ints
    is_decode: bool = False

    def __post_init__(self) -> None:
        shapes = {self.token_ids.shape, self.seq.shape, self.pos.shape}
        if len(shapes) != 1 or self.token_ids.ndim != 1 or not self.token_ids.size:
            raise KernelContractError(f"batch: expected three int32[n >= 1], got {shapes}")

    @property
    def n_tokens(self) -> int:
        return int(self.token_ids.size)

    @property
    def has_single_rows(self) -> bool:
        """Whether every row is of another sequence, as in decode."""
        return self.is_decode or bool((np.diff(self.seq) != 0).all())

    @classmethod
    def decode(cls, rows: Sequence[tuple[int, int, int]], n_rows: int) -> Self:
        """From (seq, pos, token id), with logits of all; the first one, which writes the same to
        the cache again, fills it up to n_rows."""
        filled = np.array([*rows, *[rows[0]] * (n_rows - len(rows))], np.int32)
        seq, pos, token_ids = np.ascontiguousarray(filled.T)
        return cls(token_ids, seq, pos, np.arange(len(filled), dtype=np.int32), is_decode=True)

    @classmethod
    def of(cls, *pieces: tuple[int, int, list[int]], logits: str = "last") -> Self:
        """From (seq, first position, token ids) pieces; logits of the `last` row each, of `all` or
        of `none`."""
        ids = [np.asarray(piece, np.int32) for _, _, piece in pieces]
        seq = [np.full(len(a), s, np.int32) for (s, _, _), a in zip(pieces, ids, strict=True)]
        pos = [
            np.arange(first, first + len(a), dtype=np.int32)
            for (_, first, _), a in zip(pieces, ids, strict=True)
        ]
        ends = np.cumsum([len(a) for a in ids])
        rows = {"last": ends - 1, "all": np.arange(ends[-1]), "none": ends[:0]}[logits]
        return cls(
            np.concatenate(ids), np.concatenate(seq), np.concatenate(pos), rows.astype(np.int32)
        )
