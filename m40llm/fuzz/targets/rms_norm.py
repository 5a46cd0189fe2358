"""rms_norm in its three forms, against the FP64 reference."""

from typing import Any

import numpy as np

from m40llm import reference
from m40llm.fuzz.bounds import assert_within, rms_norm_bound
from m40llm.fuzz.contents import normals
from m40llm.fuzz.definition import target
from m40llm.fuzz.strategies import choices, flags, seeds, sizes
from m40llm.kernels import rms_norm as kernels
from m40llm.kernels.rms_norm import N_THREADS

EPS = float(np.float32(1e-5))


def inputs(rng: np.random.Generator, *shape: int) -> tuple[Any, Any]:
    """x of any size of numbers, and a weight."""
    x = normals(rng, *shape, spread=10.0 ** rng.integers(-3, 3))
    return x, (1 + normals(rng, shape[-1], spread=0.5)).astype(np.float32)


@target(
    ops=kernels, n_tokens=sizes(2, 4), n_embd=sizes(4 * N_THREADS), in_place=flags(), seed=seeds()
)
def rms_norm(card: Any, ops: Any, n_tokens: int, n_embd: int, in_place: bool, seed: int) -> None:
    x, weight = inputs(np.random.default_rng(seed), n_tokens, n_embd)
    x_on = card.upload(x, read_only=not in_place)
    out = x_on if in_place else card.guarded(x.shape)
    ops.rms_norm(x_on, card.upload(weight), EPS, out, stream=card)
    check(card.read(out), reference.rms_norm(x, weight, EPS), n_embd, N_THREADS)


@target(
    ops=kernels, n_tokens=sizes(2, 4), n_embd=sizes(4 * N_THREADS), in_place=flags(), seed=seeds()
)
def add_rms_norm(
    card: Any, ops: Any, n_tokens: int, n_embd: int, in_place: bool, seed: int
) -> None:
    """The residual is added to x first; out may be the residual."""
    rng = np.random.default_rng(seed)
    (x, weight), residual = inputs(rng, n_tokens, n_embd), normals(rng, n_tokens, n_embd)
    x_on, residual_on = card.upload(x, read_only=False), card.upload(residual, read_only=False)
    out = residual_on if in_place else card.guarded(x.shape)
    ops.add_rms_norm(x_on, residual_on, card.upload(weight), EPS, out, stream=card)
    np.testing.assert_array_equal(card.read(x_on), x + residual)
    check(card.read(out), reference.rms_norm(x + residual, weight, EPS), n_embd, N_THREADS)


@target(
    ops=kernels,
    n_tokens=sizes(2, 3),
    n_heads=sizes(4, 9),
    head_dim=choices([1, 2, 31, 33, 64, 80, 128]),
    in_place=flags(),
    seed=seeds(),
)
def rms_norm_heads(
    card: Any, ops: Any, n_tokens: int, n_heads: int, head_dim: int, in_place: bool, seed: int
) -> None:
    x, weight = inputs(np.random.default_rng(seed), n_tokens, n_heads, head_dim)
    x_on = card.upload(x, read_only=not in_place)
    out = x_on if in_place else card.guarded(x.shape)
    ops.rms_norm_heads(x_on, card.upload(weight), EPS, out, stream=card)
    check(card.read(out), reference.rms_norm(x, weight, EPS), head_dim, 32)


def check(got: Any, expected: Any, n_embd: int, n_threads: int) -> None:
    """Within the relative bound."""
    assert_within(got, expected, rms_norm_bound(n_embd, n_threads) * np.abs(expected))
