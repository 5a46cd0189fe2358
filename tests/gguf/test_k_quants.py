"""Q4_K, Q5_K and Q6_K: no block has a larger error than llama.cpp leaves, and none is far off."""

import json
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as GGMLType
from hypothesis import example, given
from hypothesis import strategies as st
from k_quant_rows import KINDS, errors, rows
from k_quant_scalar import scalar_block

from m40llm.errors import KernelContractError, ModelFileError
from m40llm.gguf import k_quants as module
from m40llm.gguf.blocks import dequantize, row_bytes
from m40llm.gguf.k_quants import K_QUANTS, quantize_k

GOLDENS = json.loads(
    (Path(__file__).parents[1] / "goldens" / "k_quants.json").read_text(encoding="utf-8")
)
N_LEVELS = {"Q4_K": 16, "Q5_K": 32, "Q6_K": 64}
each_type = pytest.mark.parametrize("type_", K_QUANTS, ids=lambda type_: type_.name)


def round_trip(type_: GGMLType, weights: np.ndarray) -> np.ndarray:
    return dequantize(type_, quantize_k(weights, type_))


@each_type
@pytest.mark.parametrize("kind", KINDS)
def test_no_block_has_a_larger_error_than_llama_cpp_leaves(type_: GGMLType, kind: str) -> None:
    """Against the errors of its own library. The slack is that of FP32 sums of 256 squares."""
    ours = errors(round_trip(type_, rows(kind)), rows(kind))
    theirs = np.array(GOLDENS[type_.name][kind])
    assert (ours <= theirs * (1 + 256 * 2.0**-24)).all()
    if kind in ("normal", "heavy-tailed", "positive", "negative"):
        assert ours.sum() < theirs.sum()


@each_type
@pytest.mark.parametrize("kind", ["normal", "heavy-tailed", "positive", "negative"])
def test_the_error_is_no_larger_than_that_of_the_scalar_reference(
    type_: GGMLType, kind: str
) -> None:
    """Of each row, which is enough that grids which change places in FP64 do not matter."""
    weights = rows(kind)[:2]
    blocks = weights.astype(np.float64).reshape(-1, 256)
    scalar = np.array([scalar_block(type_.name, block.tolist()) for block in blocks])
    ours, theirs = (
        errors(again, weights).reshape(len(weights), -1).sum(axis=1)
        for again in (round_trip(type_, weights), scalar.reshape(weights.shape))
    )
    assert (ours <= theirs).all()


@each_type
def test_the_scalar_reference_is_llama_cpp(type_: GGMLType) -> None:
    """To six digits, but for a block or two where FP32 and FP64 part at a near tie."""
    weights = rows("normal")
    blocks = weights.astype(np.float64).reshape(-1, 256)
    scalar = np.array([scalar_block(type_.name, block.tolist()) for block in blocks])
    theirs = np.array(GOLDENS[type_.name]["normal"])
    is_same = np.isclose(errors(scalar.reshape(weights.shape), weights), theirs, rtol=1e-6, atol=0)
    assert is_same.sum() >= len(theirs) - 2


@each_type
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.sampled_from([(256,), (1, 256), (3, 512), (2, 2, 256)]),
    exponent=st.integers(-10, 15),
    offset=st.sampled_from([0.0, 0.0, 1.0, -1.0, 30.0, -30.0]),
)
@example(seed=0, shape=(256,), exponent=15, offset=-30.0)
def test_each_weight_is_within_a_level_and_a_half(
    type_: GGMLType, seed: int, shape: tuple[int, ...], exponent: int, offset: float
) -> None:
    """A run's level is at most its span, zero included, over the levels less one.

    Half of one is rounding. The search ends at most a level short of the largest weight and codes
    of 6 bits move each end by 1/126 of the block's largest step, hence the rest of the bound. In
    Q6_K the span is that from -largest to largest, and codes have 8 bits.
    """
    rng = np.random.default_rng(seed)
    weights = ((rng.standard_normal(shape) + offset) * 2.0**exponent).astype(np.float32)
    again = round_trip(type_, weights)
    assert again.shape == shape
    blocks = weights.reshape(-1, 256)
    span = np.maximum(blocks.max(1), 0) - np.minimum(blocks.min(1), 0)
    if type_ == GGMLType.Q6_K:
        span = 2 * np.abs(blocks).max(1)
    bound = 1.5 * span / (N_LEVELS[type_.name] - 1) + span / 63
    assert (np.abs(again - weights).reshape(-1, 256).max(1) <= bound).all()


@each_type
@given(value=st.floats(0.25, 2.0**15, width=32), sign=st.sampled_from([1, -1]), n=st.integers(1, 3))
def test_one_value_throughout_stays_within_fp16(
    type_: GGMLType, value: float, sign: int, n: int
) -> None:
    """d or dmin is the value over 63, 945, 1953 or 4096: a normal FP16 number from 0.25 on."""
    weights = np.full((2, 256 * n), sign * value, np.float32)
    np.testing.assert_allclose(round_trip(type_, weights), weights, rtol=2.0**-11 + 2.0**-22)


@each_type
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_zeros_stay_zeros(type_: GGMLType, zero: float) -> None:
    weights = np.full((3, 512), zero, np.float32)
    weights[1, 256:] = rows("normal")[0, :256]  # beside a block that is none
    again = round_trip(type_, weights)
    assert not again[[0, 2]].any()
    assert not again[1, :256].any()
    assert again[1, 256:].any()


@each_type
@given(seed=st.integers(0, 2**32 - 1), exponent=st.integers(-8, 8))
def test_a_power_of_two_passes_through(type_: GGMLType, seed: int, exponent: int) -> None:
    """As long as d is a normal FP16 number, all else is the same but for the exponent."""
    weights = (2.0**8 * np.random.default_rng(seed).standard_normal((2, 256))).astype(np.float32)
    factor = np.float32(2.0**exponent)
    np.testing.assert_array_equal(
        round_trip(type_, weights * factor), round_trip(type_, weights) * factor
    )


@each_type
@pytest.mark.parametrize("n_at_once", [1, 3, 1024])
def test_a_block_is_the_same_whatever_is_beside_it(
    monkeypatch: pytest.MonkeyPatch, type_: GGMLType, n_at_once: int
) -> None:
    monkeypatch.setattr(module, "_BLOCKS_AT_ONCE", n_at_once)
    weights = np.concatenate([rows(kind) for kind in KINDS])
    alone = [quantize_k(row, type_) for row in weights]
    np.testing.assert_array_equal(quantize_k(weights, type_), np.stack(alone))


@each_type
def test_no_rows_and_rows_that_lie_apart(type_: GGMLType) -> None:
    empty = quantize_k(np.empty((0, 512), np.float32), type_)
    assert empty.shape == (0, row_bytes(type_, 512))
    apart = rows("normal")[::2, :256]
    np.testing.assert_array_equal(quantize_k(apart, type_), quantize_k(apart.copy(), type_))


@each_type
@pytest.mark.parametrize("value", [1e9, 3e38, -3e38])
def test_weights_beyond_fp16_steps_come_back_as_no_numbers(type_: GGMLType, value: float) -> None:
    """So that the writer of files sees it; it refuses them."""
    weights = rows("normal")
    weights[0, 3] = value
    again = round_trip(type_, weights)
    assert not np.isfinite(again[0, :256]).all()
    assert np.isfinite(again[1:]).all()


@each_type
def test_small_weights_are_not_lost(type_: GGMLType) -> None:
    """llama.cpp's Q6_K makes zeros of these: its d would be a seventh of the least FP16 number."""
    weights = rows("small")
    relative = (errors(round_trip(type_, weights), weights).sum() / (weights**2.0).sum()) ** 0.5
    assert relative < 0.1


@each_type
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_finite_number_is_refused(type_: GGMLType, value: float) -> None:
    weights = rows("normal")
    weights[1, 300] = value
    with pytest.raises(KernelContractError, match="expected finite numbers"):
        quantize_k(weights, type_)


def test_what_is_no_blocks_is_refused() -> None:
    with pytest.raises(ModelFileError, match="a multiple of Q4_K's block of 256"):
        quantize_k(np.zeros((2, 300), np.float32), GGMLType.Q4_K)
    with pytest.raises(KernelContractError, match=r"Q4_K, Q5_K, Q6_K, got float64\[1, 256\]"):
        quantize_k(np.zeros((1, 256)), GGMLType.Q4_K)  # type: ignore[arg-type]
    with pytest.raises(KernelContractError, match=r"for Q3_K"):
        quantize_k(np.zeros((1, 256), np.float32), GGMLType.Q3_K)
