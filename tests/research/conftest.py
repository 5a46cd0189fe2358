"""Tiny models that can be looked into."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from m40llm.research import LLM
from m40llm.testing import write_tiny_gguf


@pytest.fixture
def loaded(tmp_path: Path) -> Iterator[Callable[..., LLM]]:
    """loaded(**what write_tiny_gguf takes) on cpu, closed in the end."""
    with ExitStack() as stack:

        def load(device: str = "cpu", max_seq_len: int | None = None, **shape: Any) -> LLM:
            path = write_tiny_gguf(tmp_path / f"{len(list(tmp_path.iterdir()))}.gguf", **shape)
            return stack.enter_context(LLM.load(path, device=device, max_seq_len=max_seq_len))

        yield load


@pytest.fixture
def llm(loaded: Callable[..., LLM]) -> LLM:
    return loaded(n_layers=3, context_length=256)
