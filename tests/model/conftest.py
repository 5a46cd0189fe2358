"""Models on two devices at once: the cpu ops and the FP64 oracle, from one tiny file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m40llm.device.cpu.ops import CpuOps
from m40llm.device.ops import Ops
from m40llm.model.kv_cache import KVType
from m40llm.model.transformer import Transformer
from m40llm.testing import write_tiny_gguf
from m40llm.testing.models import build


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., Transformer]:
    """tiny(ops, n_seqs=..., kv_type=..., **what write_tiny_gguf takes): one file for equal ones of
    these."""

    def make(
        ops: Ops | None = None, *, n_seqs: int = 1, kv_type: KVType = "f16", **shape: Any
    ) -> Transformer:
        path = tmp_path / f"{abs(hash(repr(sorted(shape.items()))))}.gguf"
        if not path.exists():
            write_tiny_gguf(path, **shape)
        return build(path, ops or CpuOps(), n_seqs, kv_type=kv_type)

    return make


@pytest.fixture
def drawn_ids() -> Callable[..., list[int]]:
    def draw(n: int, vocab_size: int, seed: int = 0) -> list[int]:
        return np.random.default_rng(seed).integers(0, vocab_size, n).tolist()

    return draw
