"""How far one model's predictions are from another's: KL divergence, and whether both agree.

kl[t] = sum over tokens of p_base[t] * log(p_base[t] / p[t])     in nats; 0 where they are equal
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass
class Divergence:
    """Of a model from a base, position by position."""

    kl: list[float] = field(default_factory=list)
    n_same_top: int = 0  # positions whose likeliest token is the same

    def add(self, base: NDArray[np.float64], logprobs: NDArray[np.float64]) -> None:
        """Log-probabilities float64[n, vocab_size] of the same n positions."""
        self.kl += (np.exp(base) * (base - logprobs)).sum(axis=1).tolist()
        self.n_same_top += int((base.argmax(axis=1) == logprobs.argmax(axis=1)).sum())

    def summary(self) -> dict[str, Any]:
        return {
            "mean_kl": float(np.mean(self.kl)),
            "p99_kl": float(np.quantile(self.kl, 0.99)),
            "max_kl": float(np.max(self.kl)),
            "same_top": self.n_same_top / len(self.kl),
        }
