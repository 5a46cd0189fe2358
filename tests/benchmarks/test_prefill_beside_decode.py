"""The benchmark of a prefill beside decode verifies on the emulator; times mean little there."""

import prefill_beside_decode as benchmark
import pytest

from m40llm.bench.synthetic import synthetic_model
from m40llm.device import open_device
from m40llm.device.gpu.ops import GpuOps
from m40llm.testing.tiny_shape import TINY_SHAPE


def test_smoke(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("N_TOKENS", 8), ("AT_TOKEN", 4), ("N_REPEATS", 1)):
        monkeypatch.setattr(benchmark, name, value)
    ops, _ = open_device("emulator")
    assert isinstance(ops, GpuOps)
    model = synthetic_model(ops, TINY_SHAPE, "F16", n_seqs=4, max_seq_len=32, max_tokens=8)
    decoder = model.decoder
    assert not isinstance(decoder, str)
    row = benchmark.measure(model, decoder, 5)
    assert row["prefill_tokens"] == 5
    assert 0 < row["gap_ms"] <= row["longest_gap_ms"]
