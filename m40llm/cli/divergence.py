"""How far one model's predictions are from another's: KL divergence, and whether both agree.

kl[t] = sum over tokens of p_base[t] * log(p_base[t] / p[t])     in nats; 0 where they are equal
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ROWS = 64  # whose float64 copies are made at a time


@dataclass
class Divergence:
    """Of a model from a base, position by position."""

    kl: list[float] = field(default_factory=list)
    n_same_top: int = 0  # positions whose likeliest token is the same

    def add(self, base: NDArray[np.float32], logits: NDArray[np.float32]) -> None:
        """Logits float32[n, vocab_size] of the same n positions."""
        for first in range(0, len(logits), _ROWS):
            expected = _log_softmax(base[first : first + _ROWS])
            got = _log_softmax(logits[first : first + _ROWS])
            self.kl += (np.exp(expected) * (expected - got)).sum(axis=1).tolist()
            self.n_same_top += int((expected.argmax(axis=1) == got.argmax(axis=1)).sum())

    def summary(self) -> dict[str, Any]:
        return {
            "mean_kl": float(np.mean(self.kl)),
            "p99_kl": float(np.quantile(self.kl, 0.99)),
            "max_kl": float(np.max(self.kl)),
            "same_top": self.n_same_top / len(self.kl),
        }


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
