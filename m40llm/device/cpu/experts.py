"""The router's choice on the CPU; see kernels/choose_experts.py for the rule."""

import numpy as np
from numpy.typing import NDArray


def choose_experts(
    logits: NDArray[np.float32],
    scale: float,
    is_normalised: bool,
    ids: NDArray[np.int32],
    shares: NDArray[np.float32],
) -> None:
    """ids, shares [t * n_used] of logits [t, n_experts]: the largest first, among equals the first.

    Normalised, what the shares of the others would have been does not matter: a softmax over the
    chosen alone is the same.
    """
    n_used = ids.size // len(logits)
    chosen = np.argsort(-logits, axis=1, kind="stable")[:, :n_used]
    values = np.take_along_axis(logits, chosen, axis=1).astype(np.float64)
    with np.errstate(invalid="ignore"):  # of infinities, which the logits' check tells of
        weights = np.exp(values - values[:, :1])
        summed = weights if is_normalised else np.exp(logits - values[:, :1])
        weights *= scale / summed.sum(axis=1, keepdims=True)
    ids[:], shares[:] = chosen.reshape(-1), weights.reshape(-1)
