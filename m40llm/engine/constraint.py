"""What an answer must be like: which tokens may come next. The engine knows no more of it."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.uint32]


class Constraint(Protocol):
    """One answer's, which is told of each token as it is chosen."""

    def mask(self) -> Mask:
        """Which tokens may come next, at least one: uint32[ceil(vocab_size / 32)], bit i % 32 of
        word i // 32 for token i."""
        ...

    def heed(self, token_id: int) -> None:
        """It was chosen: one of those allowed."""
        ...

    def fork(self) -> "Constraint":
        """Another that has been told the same."""
        ...


def ids_of(mask: Mask, vocab_size: int) -> NDArray[np.intp]:
    """The tokens that a mask allows, ascending."""
    octets = mask.astype("<u4", copy=False).view(np.uint8)
    return np.flatnonzero(np.unpackbits(octets, bitorder="little", count=vocab_size))
