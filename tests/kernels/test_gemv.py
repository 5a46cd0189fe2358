"""Matrix x vector on dense weights, exact on integers, in every form that a launch can take."""

from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as GGMLType
from hypothesis import example, given, settings
from hypothesis import strategies as st
from matmul_cases import error_bound, integer_blocks, integers, normal_blocks, planes_and_weights

from m40llm import reference
from m40llm.errors import KernelContractError
from m40llm.fuzz.bounds import assert_within, gated_sums_bound
from m40llm.kernels.gemv import gemv, gemv_swiglu, rows_a_warp

seeds = st.integers(0, 2**32)


def named(value: Any) -> str | None:
    """A type's name in the test's; the default for the rest."""
    return getattr(value, "name", None)


# type, tokens and rows a warp: each is compiled once
FORMS = [
    (GGMLType.F32, 1, 4),
    (GGMLType.F16, 1, 1),
    (GGMLType.F16, 1, 4),
    (GGMLType.F16, 2, 4),
    (GGMLType.F16, 3, 2),
    (GGMLType.F16, 8, 2),
]


@pytest.mark.parametrize(("ggml_type", "n_tokens", "warp_rows"), FORMS, ids=named)
@given(n_rows=st.integers(1, 70), n_quads=st.integers(1, 90), seed=seeds)
@example(n_rows=33, n_quads=65, seed=0)
@example(n_rows=1, n_quads=2, seed=0)
@settings(max_examples=15)
def test_integers_are_exact(
    launcher: Any,
    ggml_type: GGMLType,
    n_tokens: int,
    warp_rows: int,
    n_rows: int,
    n_quads: int,
    seed: int,
) -> None:
    rng, n_cols = np.random.default_rng(seed), n_quads * (4 if ggml_type == GGMLType.F32 else 8)
    data, x = integer_blocks(rng, ggml_type, n_rows, n_cols), integers(rng, n_tokens, n_cols)
    w, weights = planes_and_weights(launcher, ggml_type, data, n_cols)
    out = launcher.poisoned((n_tokens, n_rows))
    gemv(w, launcher.upload(x, read_only=True), out, stream=launcher, warp_rows=warp_rows)
    np.testing.assert_array_equal(launcher.read(out), reference.matmul(weights, x))


@pytest.mark.parametrize("n_cols", [4096, 4104, 9000])
def test_columns_beyond_one_chunk(launcher: Any, n_cols: int) -> None:
    rng = np.random.default_rng(n_cols)
    data, x = integer_blocks(rng, GGMLType.F16, 9, n_cols), integers(rng, 1, n_cols)
    w, weights = planes_and_weights(launcher, GGMLType.F16, data, n_cols)
    out = launcher.poisoned((1, 9))
    gemv(w, launcher.upload(x), out, stream=launcher, warp_rows=1)
    np.testing.assert_array_equal(launcher.read(out), reference.matmul(weights, x))


@pytest.mark.parametrize(("has_bias", "accumulate"), [(False, True), (True, False), (True, True)])
@given(n_rows=st.integers(1, 40), seed=seeds)
@settings(max_examples=5)
def test_bias_and_residual(
    launcher: Any, has_bias: bool, accumulate: bool, n_rows: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    data, x = integer_blocks(rng, GGMLType.F16, n_rows, 72), integers(rng, 2, 72)
    w, weights = planes_and_weights(launcher, GGMLType.F16, data, 72)
    bias, before = integers(rng, n_rows), integers(rng, 2, n_rows)
    out = launcher.upload(before) if accumulate else launcher.poisoned((2, n_rows))
    given_bias = launcher.upload(bias, read_only=True) if has_bias else None
    gemv(w, launcher.upload(x), out, stream=launcher, bias=given_bias, accumulate=accumulate)
    expected = reference.matmul(weights, x, bias if has_bias else None)
    np.testing.assert_array_equal(launcher.read(out), expected + (before if accumulate else 0))


@pytest.mark.parametrize("warp_rows", [2, 4])
@given(n_out=st.integers(1, 40), seed=seeds)
@settings(max_examples=10)
def test_swiglu(launcher: Any, warp_rows: int, n_out: int, seed: int) -> None:
    rng, n_cols = np.random.default_rng(seed), 136
    data = normal_blocks(rng, GGMLType.F16, 2 * n_out, n_cols)
    x = rng.standard_normal((2, n_cols), np.float32) / np.float32(8)
    w, weights = planes_and_weights(launcher, GGMLType.F16, data, n_cols)
    out = launcher.poisoned((2, n_out))
    gemv_swiglu(w, launcher.upload(x), out, stream=launcher, warp_rows=warp_rows)
    y, error = reference.matmul(weights, x), error_bound(GGMLType.F16, data, x)
    expected = reference.swiglu(*np.split(y, 2, axis=1))
    assert_within(launcher.read(out), expected, gated_sums_bound(y, error, expected))


def test_a_token_does_not_depend_on_its_company(launcher: Any) -> None:
    rng = np.random.default_rng(3)
    data, x = normal_blocks(rng, GGMLType.F16, 21, 264), rng.standard_normal((3, 264), np.float32)
    w, _ = planes_and_weights(launcher, GGMLType.F16, data, 264)
    together, alone = launcher.poisoned((3, 21)), launcher.poisoned((1, 21))
    gemv(w, launcher.upload(x), together, stream=launcher, warp_rows=2)
    gemv(w, launcher.upload(x[1:2]), alone, stream=launcher, warp_rows=4)
    np.testing.assert_array_equal(launcher.read(together)[1], launcher.read(alone)[0])


@given(seed=st.integers(0, 2**31))
@settings(max_examples=8)
def test_any_order_of_threads(launcher: Any, seed: int) -> None:
    rng, shuffled = np.random.default_rng(seed), launcher.reordered(seed)
    data, x = integer_blocks(rng, GGMLType.F16, 19, 4360), integers(rng, 1, 4360)
    w, weights = planes_and_weights(shuffled, GGMLType.F16, data, 4360)
    out = shuffled.poisoned((1, 19))
    gemv(w, shuffled.upload(x), out, stream=shuffled, warp_rows=1)
    np.testing.assert_array_equal(shuffled.read(out), reference.matmul(weights, x))


def test_rows_a_warp() -> None:
    assert [rows_a_warp(n, 1, 132) for n in (576, 4096, 4224, 8448, 128256)] == [1, 1, 2, 4, 4]
    assert [rows_a_warp(n, 1, 24) for n in (576, 768, 1536)] == [1, 2, 4]
    assert rows_a_warp(128256, 8, 132) == 2


def test_what_it_refuses(launcher: Any) -> None:
    data = np.zeros((4, 32), np.uint8)
    w, _ = planes_and_weights(launcher, GGMLType.F16, data, 16)
    x, out = np.zeros((1, 16), np.float32), np.zeros((1, 4), np.float32)
    with pytest.raises(KernelContractError, match="x: expected 1 to 8 rows, got 9"):
        gemv(w, np.zeros((9, 16), np.float32), np.zeros((9, 4), np.float32), stream=launcher)
    with pytest.raises(KernelContractError, match=r"x: expected float32\[1, 16\]"):
        gemv(w, x[:, :8].copy(), out, stream=launcher)
    with pytest.raises(KernelContractError, match=r"out: expected float32\[1, 2\]"):
        gemv_swiglu(w, x, out, stream=launcher)
    with pytest.raises(KernelContractError, match=r"bias: expected float32\[4\]"):
        gemv(w, x, out, stream=launcher, bias=np.zeros(3, np.float32))
