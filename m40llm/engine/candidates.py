"""Tokens that may be chosen next, and their logits: what samplers pass on to one another."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Candidates:
    """Tokens still in the race.

    ids        int64[n]
    logits     float32[n] as the model made them; float64[n] once a sampler has computed
    is_sorted  likeliest first; else in the order that they were in before
    """

    ids: Ints
    logits: NDArray[np.floating[Any]]
    is_sorted: bool = False

    @classmethod
    def of(cls, logits: NDArray[np.float32]) -> "Candidates":
        """All tokens of a vocabulary, by id; nothing is copied, since that is done every token."""
        return cls(_ids_below(logits.size), logits)

    @property
    def exact_logits(self) -> Floats:
        """In FP64, where thresholds and sums are computed."""
        return self.logits.astype(np.float64, copy=False)

    @property
    def probabilities(self) -> Floats:
        return softmax(self.exact_logits)

    def keep(self, chosen: Any) -> "Candidates":
        """Those at a slice, mask or ascending list of positions."""
        return Candidates(self.ids[chosen], self.logits[chosen], self.is_sorted)

    def descending(self) -> "Candidates":
        """Likeliest first; of equals the one that was first, at the outset the smaller id."""
        if self.is_sorted:
            return self
        order = np.argsort(-self.logits, kind="stable")
        return Candidates(self.ids[order], self.exact_logits[order], is_sorted=True)


@lru_cache(maxsize=4)
def _ids_below(n: int) -> Ints:
    """0 to n - 1, read-only: every token of an answer begins with them."""
    ids = np.arange(n)
    ids.setflags(write=False)
    return ids


def softmax(logits: Floats) -> Floats:
    """exp(logits) / sum, with the maximum taken out first."""
    weights = np.exp(logits - logits.max())
    return np.asarray(weights / weights.sum())
