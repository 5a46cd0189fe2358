"""swiglu and geglu against the FP64 references."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from m40llm import reference
from m40llm.fuzz.bounds import assert_within, gate_bound
from m40llm.kernels.swiglu import geglu, swiglu

OPS = {"swiglu": (swiglu, reference.swiglu), "geglu": (geglu, reference.geglu)}


@pytest.mark.parametrize("name", OPS)
@given(
    n_tokens=st.integers(1, 4),
    n_ff=st.integers(1, 700),
    in_place=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
@example(n_tokens=1, n_ff=1, in_place=False, seed=0)
@example(n_tokens=1, n_ff=1024, in_place=True, seed=1)
@example(n_tokens=3, n_ff=343, in_place=True, seed=2)
def test_gate(
    launcher: Any, name: str, n_tokens: int, n_ff: int, in_place: bool, seed: int
) -> None:
    op, exact = OPS[name]
    rng = np.random.default_rng(seed)
    gate = (rng.normal(0, 1, (n_tokens, n_ff)) * rng.choice([0.1, 3, 40], n_ff)).astype(np.float32)
    up = rng.normal(0, 2, gate.shape).astype(np.float32)
    got = run(launcher, op, gate, up, in_place, seed)
    expected = exact(gate, up)
    assert_within(got, expected, gate_bound(name, gate, up, expected))


def run(
    launcher: Any, op: Callable[..., None], gate: Any, up: Any, in_place: bool, seed: int
) -> np.ndarray:
    gate_on = launcher.upload(gate)
    out = gate_on if in_place else launcher.poisoned(gate.shape)
    op(gate_on, launcher.upload(up, read_only=True), out, stream=launcher.reordered(seed))
    return np.asarray(launcher.read(out))


def test_far_ends(launcher: Any) -> None:
    """Nothing overflows to NaN on the way."""
    gate = np.array([[-1e30, -200, -88.8, 0, 88.8, 200, 1e12]], np.float32)
    up = np.ones_like(gate)
    for op, exact in OPS.values():
        got = run(launcher, op, gate, up, False, 0)
        with np.errstate(over="ignore"):
            np.testing.assert_allclose(got, exact(gate, up), rtol=1e-4, atol=2.0**-120)
