"""Eleven classic bugs, one changed line each in a copy of a kernel: default settings find each from
every seed, and nothing in the originals.

Originals: the first seeds always; `-m fuzz` runs the others.
"""

from pathlib import Path

import pytest
from planted import BUGS, planted

from m40llm.fuzz import explore, load_target, target_names

SEEDS = range(10)
FIRST = 2  # seeds that every run of the tests has


def seed_params() -> list[object]:
    return [s if s < FIRST else pytest.param(s, marks=pytest.mark.fuzz) for s in SEEDS]


@pytest.fixture(scope="session")
def folder(request: pytest.FixtureRequest) -> Path:
    return Path(request.config.cache.mkdir("planted"))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", BUGS)
def test_every_bug_is_found(name: str, seed: int, folder: Path) -> None:
    target = load_target(BUGS[name].target).with_ops(planted(name, folder))
    outcome = explore(target, seed=seed, shrink=False)
    assert outcome.failure is not None, f"{name}: not found in {outcome.n_examples} examples"
    print(f"{name}, seed {seed}: example {outcome.n_examples}: {outcome.failure.error}")


@pytest.mark.parametrize("seed", seed_params())
@pytest.mark.parametrize("name", target_names())
def test_originals_are_clean(name: str, seed: int) -> None:
    outcome = explore(load_target(name), seed=seed)
    assert outcome.failure is None, outcome.failure.test
    assert outcome.n_examples >= 50
