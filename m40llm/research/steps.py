"""A token at a time, with its logits, chosen by whoever asks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m40llm.engine.scalars import is_whole
from m40llm.errors import RequestError

Choose = Callable[[NDArray[np.float32], list[int]], int]


@dataclass(frozen=True)
class RawStep:
    """token_id was chosen by these logits: float32[vocab_size]."""

    token_id: int
    logits: NDArray[np.float32]


def checked_token(token: Any, vocab_size: int) -> int:
    """RequestError for what is no token."""
    if not is_whole(token) or not 0 <= token < vocab_size:
        raise RequestError(f"choose: expected a token id, 0 to {vocab_size - 1}, got {token!r}")
    return int(token)
