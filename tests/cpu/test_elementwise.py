"""Norm, rotation, gate and append on the CPU against the reference."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m40llm import reference
from m40llm.device.cpu import elementwise
from m40llm.device.cpu.ops import CpuOps
from m40llm.device.ops import RopeTable
from m40llm.fuzz.bounds import (
    add_scaled_bound,
    assert_within,
    gamma,
    gate_bound,
    scale_bound,
    softcap_bound,
)

OPS = CpuOps()
SEEDS = st.integers(0, 2**32 - 1)


@given(n_tokens=st.integers(1, 5), n_embd=st.integers(1, 700), seed=SEEDS)
def test_rms_norm(n_tokens: int, n_embd: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n_tokens, n_embd)).astype(np.float32)
    weight, out = rng.standard_normal(n_embd).astype(np.float32), np.full_like(x, np.nan)
    OPS.rms_norm(x, weight, 1e-5, out=out)
    expected = reference.rms_norm(x, weight, 1e-5)
    assert (np.abs(out - expected) <= gamma(n_embd + 6) * np.abs(expected)).all()
    OPS.rms_norm(x, weight, 1e-5, out=x)  # in place gives the same bits
    np.testing.assert_array_equal(x, out)


@given(n_tokens=st.integers(1, 5), n_ff=st.integers(1, 300), seed=SEEDS)
def test_swiglu(n_tokens: int, n_ff: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    gate = (30 * rng.standard_normal((n_tokens, n_ff))).astype(np.float32)
    up = rng.standard_normal((n_tokens, n_ff)).astype(np.float32)
    expected = reference.swiglu(gate, up)
    OPS.swiglu(gate, up, out=gate)
    # FP32's exp(-gate) overflows below -88.72, where |silu| < 88.8 exp(-88.72) = 2.7e-37
    bound = gamma(8) * np.abs(expected) + 2.7e-37 * np.abs(up)
    assert (np.abs(gate - expected) <= bound).all()


@pytest.mark.parametrize("gate", [-200.0, -88.0, 0.0, 200.0])
def test_swiglu_at_the_ends_of_exp(gate: float) -> None:
    out = np.full((1, 1), gate, np.float32)
    OPS.swiglu(out, np.ones((1, 1), np.float32), out=out)
    assert out[0, 0] == pytest.approx(gate if gate > 0 else 0.0, abs=1e-30)


@given(n_tokens=st.integers(1, 4), n_ff=st.integers(1, 300), seed=SEEDS)
def test_geglu(n_tokens: int, n_ff: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    gate = (rng.normal(0, 1, (n_tokens, n_ff)) * rng.choice([0.1, 3, 40], n_ff)).astype(np.float32)
    up = rng.normal(0, 2, gate.shape).astype(np.float32)
    expected = reference.geglu(gate, up)
    bound = gate_bound("geglu", gate, up, expected)
    OPS.geglu(gate, up, out=gate)  # in place
    assert_within(gate, expected, bound)


@given(n=st.integers(1, 300), factor=st.sampled_from([1.0, 0.25, -3.0]), seed=SEEDS)
def test_multipliers(n: int, factor: float, seed: int) -> None:
    x, y = np.random.default_rng(seed).normal(0, 3, (2, 2, n)).astype(np.float32)
    scaled, added = x.copy(), x.copy()
    OPS.scale(scaled, factor)
    OPS.add_scaled(added, y, factor)
    assert_within(scaled, reference.scale(x, factor), scale_bound(x, factor))
    assert_within(added, reference.add_scaled(x, y, factor), add_scaled_bound(x, y, factor))


@given(
    n=st.integers(1, 300),
    cap=st.sampled_from([30.0, 0.5, 7.3]),
    spread=st.sampled_from([1e-3, 0.3, 5.0, 100.0]),
    seed=SEEDS,
)
def test_softcap(n: int, cap: float, spread: float, seed: int) -> None:
    x = np.random.default_rng(seed).normal(0, spread * cap, (2, n)).astype(np.float32)
    expected = reference.softcap(x, cap)
    OPS.softcap(x, cap)
    assert_within(x, expected, softcap_bound(expected))


@pytest.mark.parametrize("layout", ["interleaved", "half"])
@given(
    n_tokens=st.integers(1, 4),
    n_heads=st.integers(1, 3),
    n_pairs=st.integers(1, 32),
    n_rest=st.sampled_from([0, 2, 16]),
    seed=SEEDS,
)
def test_rope(
    layout: str, n_tokens: int, n_heads: int, n_pairs: int, n_rest: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n_tokens, n_heads, 2 * n_pairs + n_rest)).astype(np.float32)
    angles = rng.uniform(0, 1000, (50, n_pairs))
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    pos = rng.integers(0, 50, n_tokens).astype(np.int32)
    expected = reference.rope(x, pos, cos, sin, layout)
    magnitude = np.abs(x).max()
    stride, partner = (2, 1) if layout == "interleaved" else (1, n_pairs)
    elementwise.rotate(x, pos, cos, sin, stride, partner)
    assert np.abs(x - expected).max() <= gamma(3) * 2 * magnitude


def test_append_touches_only_its_place() -> None:
    rng = np.random.default_rng(0)
    caches = [np.full((3, 2, 10, 4), np.nan, np.float32) for _ in "kv"]
    k, v = (rng.standard_normal((4, 2, 4)).astype(np.float32) for _ in "kv")
    seq, pos = np.array([0, 0, 2, 2], np.int32), np.array([3, 4, 0, 9], np.int32)
    expected = [reference.append(a, c, seq, pos) for a, c in zip((k, v), caches, strict=True)]
    q, turn = k.copy(), np.ones((10, 2), np.float32)
    still = RopeTable(turn, np.zeros_like(turn), "half")  # turns by nothing
    OPS.rope_append(q, k, v, *caches, seq, pos, still)
    for cache, wanted in zip(caches, expected, strict=True):
        np.testing.assert_array_equal(cache, wanted)
