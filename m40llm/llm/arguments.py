"""What callers may hand to `LLM`, told apart."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from m40llm.engine.scalars import is_whole
from m40llm.errors import RequestError
from m40llm.text import Tokenizer

MAX_SLOTS = 128
Prompt = str | Sequence[int]


def checked_name(name: Any) -> str:
    if not isinstance(name, str | Path):
        kind = type(name).__name__
        raise RequestError(f"path_or_alias: expected a path or a known name, got {kind}")
    return str(name)


def checked_slots(slots: Any) -> int:
    if not is_whole(slots) or not 1 <= slots <= MAX_SLOTS:
        raise RequestError(f"slots: expected 1 to {MAX_SLOTS}, got {slots!r}")
    return int(slots)


def is_many(prompt: Any) -> bool:
    """Whether a prompt is a list of prompts rather than one text or one list of ids."""
    if isinstance(prompt, str) or not isinstance(prompt, Sequence):
        return False
    return bool(prompt) and not isinstance(prompt[0], int | np.integer)


def ids_of(prompt: Prompt, tokenizer: Tokenizer) -> Sequence[int]:
    """A prompt's token ids, not yet checked where it came as such."""
    return tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
