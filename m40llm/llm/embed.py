"""A text as one vector: the hidden states of its tokens, pooled."""

from collections.abc import Iterable, Sequence
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from m40llm.engine.engine import Engine
from m40llm.errors import ModelFileError, RequestError
from m40llm.progress import Progress

Pooling = Literal["mean", "last", "cls"]
POOLINGS: Final[tuple[Pooling, ...]] = get_args(Pooling)


def embeddings(
    engine: Engine,
    texts: Sequence[Sequence[int]],
    pooling: Pooling,
    normalise: bool,
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """float32[n_texts, n_embd] of texts' token ids."""
    how = checked_pooling(pooling)
    checked = [engine.check_ids(ids, f"text {n}") for n, ids in enumerate(texts, 1)]
    rows: list[NDArray[np.float32]] = []
    for ids in checked:  # none is computed before all are known to be good
        share = _share(progress, len(rows), len(checked)) if progress else None
        rows.append(finished(pooled(engine.hidden(ids, share), how), normalise))
    return np.stack(rows)


def _share(progress: Progress, n_done: int, n_texts: int) -> Progress:
    """Progress of one text as part of the whole."""
    return lambda stage, fraction: progress(stage, (n_done + fraction) / n_texts)


def finished(vector: NDArray[np.float64], normalise: bool) -> NDArray[np.float32]:
    """float32[n_embd], of length 1 if normalised. ModelFileError where it is no finite numbers."""
    if not np.isfinite(vector).all():
        raise ModelFileError("the model's hidden states are not finite numbers: damaged weights?")
    length = float(np.linalg.norm(vector))
    if normalise and length > 0:
        vector = vector / length
    return vector.astype(np.float32)


class Pool:
    """A text's vector as its hidden states come, pieces that follow one another.

    All are read whatever the pooling: the last state needs those before it.
    """

    def __init__(self, pooling: Pooling) -> None:
        self._pooling, self._n_tokens = pooling, 0
        self._total: NDArray[np.float64] | None = None

    def add(self, states: NDArray[np.float32]) -> None:
        """states float32[n, n_embd]"""
        wide = states.astype(np.float64)
        of_piece = {"mean": wide.sum(axis=0), "last": wide[-1], "cls": wide[0]}[self._pooling]
        if self._total is None or self._pooling == "last":
            self._total = of_piece
        elif self._pooling == "mean":
            self._total = self._total + of_piece
        self._n_tokens += len(states)

    @property
    def vector(self) -> NDArray[np.float64]:
        """float64[n_embd] of what has come, at least one piece."""
        assert self._total is not None
        return self._total / self._n_tokens if self._pooling == "mean" else self._total


def pooled(pieces: Iterable[NDArray[np.float32]], pooling: Pooling) -> NDArray[np.float64]:
    """float64[n_embd] of pieces float32[n, n_embd] that follow one another, at least one."""
    pool = Pool(pooling)
    for states in pieces:
        pool.add(states)
    return pool.vector


def checked_pooling(name: object) -> Pooling:
    """RequestError for what is none."""
    for pooling in POOLINGS:
        if pooling == name:
            return pooling
    raise RequestError(f"pooling: expected {', '.join(POOLINGS)}, got {name!r}")
