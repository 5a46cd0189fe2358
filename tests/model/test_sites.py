"""Every site against HF transformers: values that it computed on its way, in FP64."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from m40llm.device.cpu.ops import CpuOps
from m40llm.model.batch import Batch
from m40llm.model.sites import Memory, sites_of
from m40llm.model.transformer import Transformer
from m40llm.testing.noisy_ops import NoisyOps, NoisyTables
from m40llm.testing.reference_ops import ReferenceOps

_GOLDENS = Path(__file__).parents[1] / "goldens"
_SITES = json.loads((_GOLDENS / "sites.json").read_text(encoding="utf-8"))
_MODELS = json.loads((_GOLDENS / "architectures.json").read_text(encoding="utf-8"))["models"]
POSITIONS, SITES = _SITES["positions"], _SITES["models"]
Tiny = Callable[..., Transformer]
Seen = dict[str, NDArray[Any]]


class Watch:
    """Hooks that keep the rows of POSITIONS, and change nothing."""

    def __init__(self, sites: set[str] | None = None) -> None:
        self.seen: Seen = {}
        self._sites = sites

    def begin(self, batch: Batch) -> None: ...

    def wants(self, site: str) -> bool:
        return self._sites is None or site in self._sites

    def visit(
        self, site: str, memory: Memory, buffer: Any, rows: NDArray[np.int32] | None = None
    ) -> None:
        values = memory.read(buffer)
        assert site not in self.seen
        self.seen[site] = values.reshape(len(values), -1)


def watched(model: Transformer, ids: list[int]) -> Seen:
    model.hooks = watch = Watch()
    model.forward(Batch.of((0, 0, ids), logits="all"))
    return watch.seen


def kept(values: NDArray[Any], n: int) -> NDArray[Any]:
    """As make_sites.py keeps them."""
    return values[POSITIONS][:, np.linspace(0, values.shape[1] - 1, n).astype(int)]


def spread(make: Callable[[int], Transformer], ids: list[int], exact: Seen) -> dict[str, float]:
    """Four noisy runs show it; the true error is one more draw of it, so twice the widest."""
    runs = [watched(make(seed), ids) for seed in range(4)]
    return {
        site: 2 * max(float(np.abs(run[site] - values).max()) for run in runs)
        for site, values in exact.items()
        if np.isfinite(values).all()
    }


@pytest.mark.parametrize("name", SITES)
def test_each_is_what_transformers_has(name: str, tiny: Tiny) -> None:
    golden = _MODELS[name]
    ids, shape, theirs = golden["ids"], golden["shape"], SITES[name]
    model = tiny(ReferenceOps(), **shape)
    exact = watched(model, ids)
    assert list(exact) == list(sites_of(model.arch, model.hp))
    of_tables = spread(lambda seed: tiny(NoisyTables(seed), **shape), ids, exact)
    of_fp32 = spread(lambda seed: tiny(NoisyOps(seed), **shape), ids, exact)
    got = watched(tiny(CpuOps(), **shape), ids)
    assert list(got) == list(exact)
    for site, rows in theirs.items():
        wanted = np.array(rows)
        error = np.abs(kept(exact[site], wanted.shape[1]) - wanted).max()
        printed = 5e-9 * np.abs(wanted).max()  # nine digits of each
        assert error <= of_tables[site] + printed, site
        error = np.abs(kept(got[site], wanted.shape[1]) - wanted).max()
        assert error <= of_fp32[site] + printed, site
