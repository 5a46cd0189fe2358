"""Tokens that may be chosen next, and their logits: what samplers pass on to one another."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Candidates:
    """Tokens still in the race.

    ids        int64[n]
    logits     float64[n]
    is_sorted  likeliest first; else in the order that they were in before
    """

    ids: Ints
    logits: Floats
    is_sorted: bool = False

    @classmethod
    def of(cls, logits: NDArray[np.float32]) -> "Candidates":
        """All tokens of a vocabulary, by id."""
        return cls(np.arange(logits.size), logits.astype(np.float64))

    @property
    def probabilities(self) -> Floats:
        return softmax(self.logits)

    def keep(self, chosen: Any) -> "Candidates":
        """Those at a slice, mask or ascending list of positions."""
        return Candidates(self.ids[chosen], self.logits[chosen], self.is_sorted)

    def descending(self) -> "Candidates":
        """Likeliest first; of equals the one that was first, at the outset the smaller id."""
        if self.is_sorted:
            return self
        order = np.argsort(-self.logits, kind="stable")
        return Candidates(self.ids[order], self.logits[order], is_sorted=True)


def softmax(logits: Floats) -> Floats:
    """exp(logits) / sum, with the maximum taken out first."""
    weights = np.exp(logits - logits.max())
    return np.asarray(weights / weights.sum())
