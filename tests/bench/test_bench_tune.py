"""`m40llm bench tune` on a small shape: what it finds is used, and a wrong product is noticed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as GGMLType

from m40llm.bench import tune as tuning
from m40llm.bench.synthetic import synthetic_model
from m40llm.device import open_device
from m40llm.device.gpu.launches import Launches
from m40llm.device.gpu.ops import GpuOps
from m40llm.errors import DeviceError
from m40llm.kernels.gemm_choice import Choice
from m40llm.kernels.gemm_tiles import Tile
from m40llm.testing.tiny_shape import TINY_SHAPE

CHOICES = [Choice(Tile(64, 64), 1), Choice(Tile(32, 64, 4), 1), Choice(Tile(32, 64, 4), 2)]
DEVICES = ["emulator", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def model(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_compiled: Any) -> Any:
    monkeypatch.setenv("M40LLM_HOME", str(with_compiled(tmp_path)))
    monkeypatch.setattr(tuning, "candidates", lambda *size: CHOICES[:2])
    monkeypatch.setattr(tuning, "SAMPLE_S", 0)
    ops, _ = open_device(request.param)
    assert isinstance(ops, GpuOps)
    return synthetic_model(ops, TINY_SHAPE, "F16", n_seqs=1, max_seq_len=16)


def test_each_product_has_its_fastest_tile(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([3.0, 1.0, 1.0, 3.0, 1.0, 0.999, 3.0, 1.0, 3.0, 1.0, 3.0, 1.0])
    monkeypatch.setattr(tuning, "_microseconds", lambda *args: next(times))
    rows = list(tuning.tune(model, [20]))
    assert len(rows) == len({(row.n_rows, row.n_cols) for row in rows})
    assert [row.tuned for row in rows[:3]] == ["32x64x4", "64x64", "64x64"]  # under 1 % is noise
    assert rows[0].as_json()["choice"] == "64x64"
    taken: list[Any] = []
    take = Launches(gemm=lambda *args, tile, **rest: taken.append(tile))
    monkeypatch.setattr(model.ops, "launches", take)
    w = model.weights.layers[0].attn_q
    x, out = model.ops.empty((20, w.n_cols)), model.ops.empty((20, w.n_rows))
    model.ops.matmul(w, x, out=out)
    model.ops.matmul(w, model.ops.empty((21, w.n_cols)), out=model.ops.empty((21, w.n_rows)))
    assert taken == [Tile(32, 64, 4), None]  # more tokens than were timed: the model's choice


def test_times_are_of_every_layer(model: Any) -> None:
    rows = list(tuning.tune(model, [20]))
    assert all(row.us > 0 and row.n_timed == 2 for row in rows)
    n_layers = len(model.weights.layers)
    of_type = {len(group) for group in tuning.matrices_of(model)}
    assert of_type <= {n_layers, 2 * n_layers, 3 * n_layers}


def test_a_wrong_product_is_noticed(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    right = tuning.gemm

    def wrong(w: Any, x: Any, out: Any, **options: Any) -> None:
        right(w, x, out, **options)
        if options["tile"].n_groups > 1:
            model.ops.write(out[:1], model.ops.read(out[:1]) * np.float32(1.01))

    monkeypatch.setattr(tuning, "gemm", wrong)
    with pytest.raises(DeviceError, match=r"F16 \(20, .*, 32x64x4: the product is wrong"):
        list(tuning.tune(model, [20]))
    assert model.weights.layers[0].attn_q.type == GGMLType.F16
