"""The benchmark of constrained decode verifies on the emulator; times mean little there."""

from typing import Any

import constrained_decode as benchmark
import pytest

from m40llm.bench.synthetic import synthetic_model
from m40llm.device import open_device
from m40llm.device.gpu.ops import GpuOps
from m40llm.llm.constraint import Constraints
from m40llm.testing.tiny_shape import TINY_SHAPE

pytest.importorskip("llguidance", reason="no constraints: pip install llguidance")


def test_smoke(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("N_TOKENS", 8), ("N_REPEATS", 1)):
        monkeypatch.setattr(benchmark, name, value)
    ops, _ = open_device("emulator")
    assert isinstance(ops, GpuOps)
    model = synthetic_model(ops, TINY_SHAPE, "F16", n_seqs=4, max_seq_len=32)
    tokenizer: Any = benchmark.DrawnTokenizer(TINY_SHAPE.vocab_size)
    row = benchmark.measure(model, "persistent", Constraints(tokenizer, TINY_SHAPE.vocab_size))
    assert row["ratio"] > 0
    assert row["mask_ms"] >= benchmark.MASK_MS
