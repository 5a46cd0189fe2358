"""rms_norm in its three forms, against the FP64 reference."""

from typing import Any

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from m40llm.fuzz.bounds import rms_norm_bound
from m40llm.kernels.rms_norm import MAX_QUADS, N_THREADS, add_rms_norm, rms_norm, rms_norm_heads
from m40llm.reference import rms_norm as reference

SEEDS = st.integers(0, 2**32 - 1)
EDGES = [4 * N_THREADS * n + more for n in (1, 2, MAX_QUADS) for more in (-4, 0, 1, 4)]
SIZES = st.one_of(st.integers(1, 80), st.integers(N_THREADS - 2, N_THREADS + 2), st.just(1100))
SIZES = st.one_of(SIZES, st.sampled_from(EDGES))


def inputs(n_rows: int, n_embd: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 10.0 ** rng.integers(-3, 3), (n_rows, n_embd)).astype(np.float32)
    return x, rng.normal(1, 0.5, n_embd).astype(np.float32)


def check(got: np.ndarray, expected: np.ndarray, bound: float) -> None:
    assert (np.abs(got - expected) <= bound * np.abs(expected)).all()


@given(n_tokens=st.integers(1, 4), n_embd=SIZES, in_place=st.booleans(), seed=SEEDS)
@example(n_tokens=1, n_embd=1, in_place=True, seed=0)
@example(n_tokens=2, n_embd=257, in_place=False, seed=1)
@example(n_tokens=2, n_embd=8192, in_place=True, seed=2)
@example(n_tokens=2, n_embd=8196, in_place=True, seed=3)
def test_rms_norm(launcher: Any, n_tokens: int, n_embd: int, in_place: bool, seed: int) -> None:
    x, weight = inputs(n_tokens, n_embd, seed)
    on_device = launcher.upload(x)
    out = on_device if in_place else launcher.poisoned(x.shape)
    stream = launcher.reordered(seed)
    rms_norm(on_device, launcher.upload(weight), 1e-5, out, stream=stream)
    expected = reference(x, weight, float(np.float32(1e-5)))
    check(launcher.read(out), expected, rms_norm_bound(n_embd, N_THREADS))


@given(n_tokens=st.integers(1, 3), n_embd=SIZES, in_place=st.booleans(), seed=SEEDS)
def test_add_rms_norm(launcher: Any, n_tokens: int, n_embd: int, in_place: bool, seed: int) -> None:
    x, weight = inputs(n_tokens, n_embd, seed)
    residual = np.random.default_rng(seed + 1).normal(0, 1, x.shape).astype(np.float32)
    x_on, residual_on = launcher.upload(x), launcher.upload(residual)
    out = residual_on if in_place else launcher.poisoned(x.shape)
    stream = launcher.reordered(seed)
    add_rms_norm(x_on, residual_on, launcher.upload(weight), 1e-6, out, stream=stream)
    np.testing.assert_array_equal(launcher.read(x_on), x + residual)
    expected = reference(x + residual, weight, float(np.float32(1e-6)))
    check(launcher.read(out), expected, rms_norm_bound(n_embd, N_THREADS))


@given(
    n_tokens=st.integers(1, 3),
    n_heads=st.integers(1, 9),
    head_dim=st.sampled_from([1, 2, 31, 33, 64, 80, 128]),
    in_place=st.booleans(),
    seed=SEEDS,
)
def test_rms_norm_heads(
    launcher: Any, n_tokens: int, n_heads: int, head_dim: int, in_place: bool, seed: int
) -> None:
    x, weight = inputs(n_tokens * n_heads, head_dim, seed)
    x = x.reshape(n_tokens, n_heads, head_dim)
    on_device = launcher.upload(x)
    out = on_device if in_place else launcher.poisoned(x.shape)
    stream = launcher.reordered(seed)
    rms_norm_heads(on_device, launcher.upload(weight), 1e-5, out, stream=stream)
    expected = reference(x, weight, float(np.float32(1e-5)))
    check(launcher.read(out), expected, rms_norm_bound(head_dim, 32))
