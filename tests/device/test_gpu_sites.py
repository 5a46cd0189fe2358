"""Every site of a forward pass on the GPU kernels, against the FP64 oracle."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from m40llm.device.ops import RopeTable
from m40llm.model.sites import sites_of
from m40llm.research import LLM
from m40llm.testing import write_tiny_gguf
from m40llm.testing.models import build
from m40llm.testing.noisy_ops import NoisyOps
from m40llm.testing.reference_ops import ReferenceOps
from m40llm.testing.watch import spread, watched

Array = NDArray[Any]
HALF_ROUNDOFF = 2.0**-11  # of FP16, of a normal number
SHAPE = {"head_dim": 64, "context_length": 64}
MODELS: dict[str, dict[str, Any]] = {
    "Q8_0": {"tensor_type": "Q8_0"},
    "qwen3": {"arch": "qwen3"},
    "gemma2": {"arch": "gemma2", "metadata": {"gemma2.attention.sliding_window": 12}},
    "olmo2": {"arch": "olmo2"},
    "qwen3moe": {"arch": "qwen3moe", "n_experts_used": 3},
}
CASES = [
    *[pytest.param(name, "cuda", marks=pytest.mark.gpu) for name in MODELS],
    ("Q8_0", "emulator"),
]


class NoisyHalfCache(NoisyOps):
    """NoisyOps whose keys and values are rounded to FP16 as well, as a card's cache holds them."""

    def rope_append(
        self, q: Array, k: Array, v: Array, k_cache: Array, v_cache: Array, seq: Array, pos: Array,
        table: RopeTable,
    ) -> None:  # fmt: skip
        super().rope_append(q, k, v, k_cache, v_cache, seq, pos, table)
        for cache in (k_cache, v_cache):
            held = cache[seq, :, pos]
            cache[seq, :, pos] = held * (1 + HALF_ROUNDOFF * self._rng.uniform(-1, 1, held.shape))


@pytest.mark.parametrize(("name", "device"), CASES)
def test_each_site(name: str, device: str, tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", **{**SHAPE, **MODELS[name]})
    ids = np.random.default_rng(0).integers(0, 250, 20).tolist()
    exact = watched(build(path, ReferenceOps()), ids)
    bounds = spread(lambda seed: build(path, NoisyHalfCache(seed)), ids, exact)
    with LLM.load(path, device=device, decode="host") as llm:
        model = llm.transformer
        got = watched(model, ids)
        assert list(got) == list(sites_of(model.arch, model.hp))
    for site, bound in bounds.items():
        assert (np.abs(got[site] - exact[site]).max(axis=1) <= bound).all(), site
