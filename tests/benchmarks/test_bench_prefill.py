"""The benchmark of prefill verifies on the emulator; times mean little there."""

import bench_prefill as benchmark
import pytest

from m40llm.bench.synthetic import synthetic_model
from m40llm.device import open_device
from m40llm.device.gpu.ops import GpuOps
from m40llm.errors import M40LLMError
from m40llm.testing.tiny_shape import TINY_SHAPE


def test_smoke(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "N_REPEATS", 1)
    ops, _ = open_device("emulator")
    assert isinstance(ops, GpuOps)
    model = synthetic_model(ops, TINY_SHAPE, "F16", n_seqs=1, max_seq_len=32, max_tokens=12)
    row = benchmark.measure(model, 30, 12)
    assert row["n_tokens"] == 30
    assert row["products_ms"] > 0
    monkeypatch.setattr(benchmark, "MAX_ERROR", -1.0)
    with pytest.raises(M40LLMError, match="logits differ by"):
        benchmark.measure(model, 30, 12)
