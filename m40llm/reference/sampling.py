"""Sampling's distribution: penalties, top_k, top_p, min_p at temperature 1, then the temperature.

Order and meaning are llama.cpp's, without typical_p; see engine/sampling.py for the words.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from m40llm.reference.softmax import softmax


def penalised(
    logits: NDArray[Any],
    history: NDArray[Any],
    repetition: float,
    presence: float,
    frequency: float,
) -> NDArray[np.float64]:
    """logits, history [vocab_size] -> float64[vocab_size]

    history  1 if the prompt holds the token, plus 2 for each time that the answer does
    """
    logits, n_answered = logits.astype(np.float64), history // 2
    repeated = np.where(logits > 0, logits / repetition, logits * repetition)
    logits = np.where(history > 0, repeated, logits)
    return np.asarray(logits - np.where(n_answered > 0, presence + frequency * n_answered, 0.0))


def masked(logits: NDArray[Any], mask: NDArray[Any]) -> NDArray[np.float64]:
    """logits [vocab_size], mask [ceil(vocab_size / 32)] -> float64[vocab_size]

    Bit i % 32 of word i // 32 of the mask: whether token i may come. What may not is -inf.
    """
    ids = np.arange(logits.size)
    may_come = mask[ids // 32].astype(np.int64) >> ids % 32 & 1
    return np.where(may_come == 1, logits.astype(np.float64), -np.inf)


def distribution(
    logits: NDArray[Any], temperature: float, top_k: int, top_p: float, min_p: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(ids of the tokens kept, likeliest first; their probabilities); temperature above 0"""
    logits = logits.astype(np.float64)
    ids = np.argsort(-logits, kind="stable")
    ids = ids[:top_k] if top_k else ids
    if top_p < 1:
        cumulative = np.cumsum(softmax(logits[ids]))
        ids = ids[: int((cumulative < top_p).sum()) + 1]
    if min_p > 0:
        ids = ids[logits[ids] >= logits[ids[0]] + np.log(min_p)]
    return ids, softmax(logits[ids] / temperature)
