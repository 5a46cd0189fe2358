"""Matrix product: exact on integers, for any sizes, with every type of weights."""

from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as GGMLType
from hypothesis import example, given, settings
from hypothesis import strategies as st
from matmul_cases import (
    QUANTISED,
    error_bound,
    integer_blocks,
    integers,
    normal_blocks,
    planes_and_weights,
)

from m40llm import reference
from m40llm.errors import KernelContractError
from m40llm.gguf.blocks import FORMATS
from m40llm.kernels.gemm import gemm

seeds = st.integers(0, 2**32)


def named(value: Any) -> str | None:
    """A type's name in the test's; the default for the rest."""
    return getattr(value, "name", None)


FORMS = [  # each is compiled once
    (GGMLType.F32, np.float32, 128),
    (GGMLType.F16, np.float32, 128),
    (GGMLType.F16, np.float32, 64),
    (GGMLType.F16, np.float16, 64),
]
QUANTISED_FORMS = [*((ggml_type, 64) for ggml_type in QUANTISED), (GGMLType.Q5_K, 128)]


@pytest.mark.parametrize(("ggml_type", "x_dtype", "tile"), FORMS, ids=named)
@given(
    n_tokens=st.integers(1, 150), n_rows=st.integers(1, 150), n_quads=st.integers(1, 20), seed=seeds
)
@example(n_tokens=1, n_rows=1, n_quads=1, seed=0)
@example(n_tokens=64, n_rows=128, n_quads=4, seed=0)
@example(n_tokens=129, n_rows=65, n_quads=5, seed=0)
@settings(max_examples=12)
def test_integers_are_exact(
    launcher: Any,
    ggml_type: GGMLType,
    x_dtype: type,
    tile: int,
    n_tokens: int,
    n_rows: int,
    n_quads: int,
    seed: int,
) -> None:
    rng, n_cols = np.random.default_rng(seed), n_quads * (4 if ggml_type == GGMLType.F32 else 8)
    data, x = integer_blocks(rng, ggml_type, n_rows, n_cols), integers(rng, n_tokens, n_cols)
    w, weights = planes_and_weights(launcher, ggml_type, data, n_cols)
    out = launcher.poisoned((n_tokens, n_rows))
    x_device = launcher.upload(x.astype(x_dtype), read_only=True)
    gemm(w, x_device, out, stream=launcher, tile=tile)
    np.testing.assert_array_equal(launcher.read(out), reference.matmul(weights, x))


@pytest.mark.parametrize(("ggml_type", "tile"), QUANTISED_FORMS, ids=named)
@given(
    n_tokens=st.integers(1, 140), n_rows=st.integers(1, 140), n_units=st.integers(1, 20), seed=seeds
)
@settings(max_examples=6)
def test_quantised_integers_are_exact(
    launcher: Any,
    ggml_type: GGMLType,
    tile: int,
    n_tokens: int,
    n_rows: int,
    n_units: int,
    seed: int,
) -> None:
    block = FORMATS[ggml_type].n_weights
    rng, n_cols = np.random.default_rng(seed), max(n_units * 32 // block, 1) * block
    data = integer_blocks(rng, ggml_type, n_rows, n_cols)
    x = integers(rng, n_tokens, n_cols, most=1)
    w, weights = planes_and_weights(launcher, ggml_type, data, n_cols)
    out = launcher.poisoned((n_tokens, n_rows))
    gemm(w, launcher.upload(x, read_only=True), out, stream=launcher, tile=tile)
    np.testing.assert_array_equal(launcher.read(out), reference.matmul(weights, x))


@pytest.mark.parametrize("ggml_type", [GGMLType.F16, *QUANTISED], ids=lambda t: t.name)
def test_ordinary_weights_within_the_bound(launcher: Any, ggml_type: GGMLType) -> None:
    rng = np.random.default_rng(5)
    data, x = normal_blocks(rng, ggml_type, 70, 512), rng.standard_normal((37, 512), np.float32)
    w, weights = planes_and_weights(launcher, ggml_type, data, 512)
    out = launcher.poisoned((37, 70))
    gemm(w, launcher.upload(x), out, stream=launcher, tile=64)
    error = np.abs(launcher.read(out) - reference.matmul(weights, x))
    assert (error <= error_bound(ggml_type, data, x)).all()


@pytest.mark.parametrize(("has_bias", "accumulate"), [(True, False), (True, True)])
def test_bias_and_residual(launcher: Any, has_bias: bool, accumulate: bool) -> None:
    rng = np.random.default_rng(6)
    data, x = integer_blocks(rng, GGMLType.F16, 67, 40), integers(rng, 66, 40)
    w, weights = planes_and_weights(launcher, GGMLType.F16, data, 40)
    bias, before = integers(rng, 67), integers(rng, 66, 67)
    out = launcher.upload(before) if accumulate else launcher.poisoned((66, 67))
    given_bias = launcher.upload(bias, read_only=True) if has_bias else None
    gemm(w, launcher.upload(x), out, stream=launcher, bias=given_bias, accumulate=accumulate)
    expected = reference.matmul(weights, x, bias if has_bias else None)
    np.testing.assert_array_equal(launcher.read(out), expected + (before if accumulate else 0))


@pytest.mark.parametrize("tile", [64, 128])
@given(seed=st.integers(0, 2**31))
@settings(max_examples=6)
def test_any_order_of_threads(launcher: Any, tile: int, seed: int) -> None:
    rng, shuffled = np.random.default_rng(seed), launcher.reordered(seed)
    data, x = integer_blocks(rng, GGMLType.Q4_1, 70, 96), integers(rng, 71, 96)
    w, weights = planes_and_weights(shuffled, GGMLType.Q4_1, data, 96)
    out = shuffled.poisoned((71, 70))
    gemm(w, shuffled.upload(x), out, stream=shuffled, tile=tile)
    np.testing.assert_array_equal(shuffled.read(out), reference.matmul(weights, x))


def test_what_it_refuses(launcher: Any) -> None:
    w, _ = planes_and_weights(launcher, GGMLType.F16, np.zeros((4, 32), np.uint8), 16)
    out = np.zeros((2, 4), np.float32)
    with pytest.raises(KernelContractError, match="x: expected at least one row"):
        gemm(w, np.zeros((0, 16), np.float32), out, stream=launcher)
    with pytest.raises(KernelContractError, match=r"x: expected float32\[2, 16\], got float64"):
        gemm(w, np.zeros((2, 16)), out, stream=launcher)
    with pytest.raises(KernelContractError, match=r"out: expected float32\[3, 4\]"):
        gemm(w, np.zeros((3, 16), np.float32), out, stream=launcher)
