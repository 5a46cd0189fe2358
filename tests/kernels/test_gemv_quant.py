"""Matrix x vector on quantised planes equals dequantise, then multiply."""

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
from m40llm.gguf.blocks import FORMATS
from m40llm.kernels.gemv import gemv, gemv_swiglu
from m40llm.kernels.planes import from_blocks
from m40llm.testing.noisy_ops import gamma

seeds = st.integers(0, 2**32)
every_type = pytest.mark.parametrize("ggml_type", QUANTISED, ids=lambda t: t.name)


def named(value: Any) -> str | None:
    """A type's name in the test's; the default for the rest."""
    return getattr(value, "name", None)


# type, tokens and rows a warp: each is compiled once
FORMS = [
    *((ggml_type, 1, 4) for ggml_type in QUANTISED),
    (GGMLType.Q4_0, 3, 2),
    (GGMLType.Q6_K, 3, 2),
]


@pytest.mark.parametrize(("ggml_type", "n_tokens", "warp_rows"), FORMS, ids=named)
@given(n_rows=st.integers(1, 40), n_units=st.integers(1, 40), seed=seeds)
@example(n_rows=33, n_units=32, seed=0)
@example(n_rows=1, n_units=33, seed=0)
@settings(max_examples=12)
def test_integers_are_exact(
    launcher: Any,
    ggml_type: GGMLType,
    n_tokens: int,
    warp_rows: int,
    n_rows: int,
    n_units: int,
    seed: int,
) -> None:
    block = FORMATS[ggml_type].n_weights
    rng, n_cols = np.random.default_rng(seed), max(n_units * 32 // block, 1) * block
    data = integer_blocks(rng, ggml_type, n_rows, n_cols)
    # 1,280 columns of at most 63 * 127 (Q6_K): below 2^24, so that every partial sum is exact
    x = integers(rng, n_tokens, n_cols, most=1)
    w, weights = planes_and_weights(launcher, ggml_type, data, n_cols)
    out = launcher.poisoned((n_tokens, n_rows))
    gemv(w, launcher.upload(x, read_only=True), out, stream=launcher, warp_rows=warp_rows)
    np.testing.assert_array_equal(launcher.read(out), reference.matmul(weights, x))


@every_type
@given(n_rows=st.integers(1, 40), n_blocks=st.integers(1, 4), seed=seeds)
@settings(max_examples=8)
def test_ordinary_weights_within_the_bound(
    launcher: Any, ggml_type: GGMLType, n_rows: int, n_blocks: int, seed: int
) -> None:
    rng, n_cols = np.random.default_rng(seed), n_blocks * FORMATS[ggml_type].n_weights
    data, x = normal_blocks(rng, ggml_type, n_rows, n_cols), rng.standard_normal((1, n_cols))
    x = (x * 2.0 ** rng.integers(-30, 30)).astype(np.float32)
    w, weights = planes_and_weights(launcher, ggml_type, data, n_cols)
    out = launcher.poisoned((1, n_rows))
    gemv(w, launcher.upload(x), out, stream=launcher, warp_rows=4)
    error = np.abs(launcher.read(out) - reference.matmul(weights, x))
    assert (error <= error_bound(ggml_type, data, x)).all()


@pytest.mark.parametrize("type_name", ["Q4_0", "Q6_K", "Q8_0"])
@pytest.mark.parametrize("n_cols", [4096, 4352, 8448])
def test_columns_beyond_one_chunk(launcher: Any, type_name: str, n_cols: int) -> None:
    rng, ggml_type = np.random.default_rng(n_cols), GGMLType[type_name]
    data = integer_blocks(rng, ggml_type, 9, n_cols)
    x = integers(rng, 1, n_cols, most=1)
    x[:, rng.permutation(n_cols)[1024:]] = 0  # as many terms as stay exact
    w, weights = planes_and_weights(launcher, ggml_type, data, n_cols)
    out = launcher.poisoned((1, 9))
    gemv(w, launcher.upload(x), out, stream=launcher, warp_rows=4)
    np.testing.assert_array_equal(launcher.read(out), reference.matmul(weights, x))


def test_more_tokens(launcher: Any) -> None:
    rng, ggml_type = np.random.default_rng(1), GGMLType.Q5_K
    data, x = integer_blocks(rng, ggml_type, 21, 512), integers(rng, 8, 512, most=1)
    w, weights = planes_and_weights(launcher, ggml_type, data, 512)
    expected = reference.matmul(weights, x)
    for n_tokens in range(1, 9):
        out = launcher.poisoned((n_tokens, 21))
        gemv(w, launcher.upload(x[:n_tokens]), out, stream=launcher)
        np.testing.assert_array_equal(launcher.read(out), expected[:n_tokens])


def test_bias_and_residual(launcher: Any) -> None:
    rng, ggml_type = np.random.default_rng(2), GGMLType.Q4_K
    data, x = integer_blocks(rng, ggml_type, 21, 256), integers(rng, 2, 256, most=1)
    w, weights = planes_and_weights(launcher, ggml_type, data, 256)
    bias, out = integers(rng, 21), launcher.upload(before := integers(rng, 2, 21))
    gemv(w, launcher.upload(x), out, stream=launcher, bias=launcher.upload(bias), accumulate=True)
    np.testing.assert_array_equal(launcher.read(out), reference.matmul(weights, x, bias) + before)


def test_swiglu_is_gemv_twice(launcher: Any) -> None:
    """The sums of the fused form are those of the plain one, to the bit."""
    rng, ggml_type = np.random.default_rng(4), GGMLType.Q4_0
    data, x = normal_blocks(rng, ggml_type, 38, 288), rng.standard_normal((1, 288), np.float32)
    w, _ = planes_and_weights(launcher, ggml_type, data, 288)
    sums, out = launcher.poisoned((1, 38)), launcher.poisoned((1, 19))
    gemv(w, launcher.upload(x), sums, stream=launcher, warp_rows=4)
    gemv_swiglu(w, launcher.upload(x), out, stream=launcher, warp_rows=4)
    gate, up = np.split(launcher.read(sums).astype(np.float64), 2, axis=1)
    expected = reference.swiglu(gate, up)
    np.testing.assert_allclose(launcher.read(out), expected, rtol=gamma(8), atol=0)


@given(seed=st.integers(0, 2**31))
@settings(max_examples=8)
def test_any_order_of_threads(launcher: Any, seed: int) -> None:
    rng, shuffled, ggml_type = np.random.default_rng(seed), launcher.reordered(seed), GGMLType.Q6_K
    data, x = integer_blocks(rng, ggml_type, 19, 4352), integers(rng, 1, 4352, most=1)
    x[:, rng.permutation(4352)[1024:]] = 0
    w, weights = planes_and_weights(shuffled, ggml_type, data, 4352)
    out = shuffled.poisoned((1, 19))
    gemv(w, shuffled.upload(x), out, stream=shuffled, warp_rows=4)
    np.testing.assert_array_equal(shuffled.read(out), reference.matmul(weights, x))


def test_rows_of_planes_are_views() -> None:
    """Gate and up share one matrix for gemv_swiglu, and are two of its slices for gemm."""
    data = integer_blocks(np.random.default_rng(0), GGMLType.Q5_K, 6, 256)
    planes = from_blocks(GGMLType.Q5_K, 6, 256, data)
    assert np.shares_memory(planes[3:].highs, planes.highs)
    assert planes[3:].n_rows == 3
