"""Every site against HF transformers: values that it computed on its way, in FP64."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from m40llm.device.cpu.ops import CpuOps
from m40llm.model.sites import sites_of
from m40llm.model.transformer import Transformer
from m40llm.testing.models import build
from m40llm.testing.noisy_ops import NoisyOps, NoisyTables
from m40llm.testing.reference_ops import ReferenceOps
from m40llm.testing.watch import spread, watched

_GOLDENS = Path(__file__).parents[1] / "goldens"
_SITES = json.loads((_GOLDENS / "sites.json").read_text(encoding="utf-8"))
_MODELS = json.loads((_GOLDENS / "architectures.json").read_text(encoding="utf-8"))["models"]
POSITIONS, SITES = _SITES["positions"], _SITES["models"]
Tiny = Callable[..., Transformer]


def kept(values: NDArray[Any], n: int) -> NDArray[Any]:
    """As make_sites.py keeps them."""
    return values[POSITIONS][:, np.linspace(0, values.shape[1] - 1, n).astype(int)]


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
        assert_near(exact[site], wanted, of_tables[site][POSITIONS], site)
        assert_near(got[site], wanted, of_fp32[site][POSITIONS], site)


def assert_near(
    values: NDArray[Any], wanted: NDArray[Any], bounds: NDArray[Any] | list[float], site: str
) -> None:
    """The rows of POSITIONS, each within its bound."""
    error = np.abs(kept(values, wanted.shape[1]) - wanted).max(axis=1)
    printed = 5e-9 * np.abs(wanted).max()  # nine digits of each
    assert (error <= np.array(bounds) + printed).all(), (site, error, bounds)


_REAL = json.loads((_GOLDENS / "real_sites.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", _REAL["models"])
def test_each_of_a_real_model(name: str, request: pytest.FixtureRequest) -> None:
    golden, path = _REAL["models"][name], request.getfixturevalue(name)
    got = watched(build(path, CpuOps()), golden["ids"])
    for site, theirs in golden["sites"].items():
        assert_near(got[site], np.array(theirs["values"]), theirs["bounds"], site)
