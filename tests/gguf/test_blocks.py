"""Block formats: sizes as the gguf package has them, values bit for bit as it defines them."""

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Tensor
from hypothesis import given
from hypothesis import strategies as st

from m40llm.errors import KernelContractError, ModelFileError, UnsupportedModelError
from m40llm.gguf.blocks import FORMATS, can_dequantize, dequantize, row_bytes

NOT_DEQUANTISED = {"Q8_1", "Q8_K", "Q1_0"}  # the first two are activations' types
PLAIN = {
    Tensor.F64: np.float64,
    Tensor.F32: np.float32,
    Tensor.F16: np.float16,
    Tensor.I8: np.int8,
    Tensor.I16: np.int16,
    Tensor.I32: np.int32,
    Tensor.I64: np.int64,
}
QUANTISED = [type_ for type_ in FORMATS if can_dequantize(type_) and type_ not in PLAIN]


def test_every_type_has_a_format() -> None:
    assert FORMATS.keys() == set(Tensor)
    assert {t.name for t in FORMATS if not can_dequantize(t)} <= NOT_DEQUANTISED
    assert (FORMATS[Tensor.Q4_1].n_weights, FORMATS[Tensor.Q4_1].n_bytes) == (32, 20)


def test_row_bytes() -> None:
    assert row_bytes(Tensor.F32, 5) == 20
    assert row_bytes(Tensor.Q8_0, 576) == 18 * 34
    with pytest.raises(ModelFileError, match="row length 33: expected a multiple of Q4_0's block"):
        row_bytes(Tensor.Q4_0, 33)


@pytest.mark.parametrize("type_", PLAIN, ids=lambda type_: type_.name)
def test_plain_types_are_numpys(type_: Tensor) -> None:
    values = np.array([[0, 1, -2, 100], [5, -7, 99, 3]], PLAIN[type_])
    weights = dequantize(type_, values.view(np.uint8))
    assert weights.dtype == np.float32
    assert np.array_equal(weights, values.astype(np.float32))


@pytest.mark.parametrize("type_", QUANTISED, ids=lambda type_: type_.name)
@given(seed=st.integers(0, 2**32 - 1), shape=st.sampled_from([(1,), (3,), (2, 3), (17, 2)]))
def test_any_bytes_dequantise_as_the_gguf_package_has_them(
    type_: Tensor, seed: int, shape: tuple[int, ...]
) -> None:
    block = FORMATS[type_]
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, (*shape[:-1], shape[-1] * block.n_bytes), np.uint8)
    data.setflags(write=False)
    weights = dequantize(type_, data)
    assert weights.shape == (*shape[:-1], shape[-1] * block.n_weights)
    with np.errstate(all="ignore"):
        expected = gguf.dequantize(data, type_)
    assert np.array_equal(weights.view(np.uint32), expected.view(np.uint32))


def test_rows_may_lie_apart_and_may_be_none() -> None:
    data = np.arange(2 * 68, dtype=np.uint8).reshape(2, 68)[:, :34]
    assert np.array_equal(dequantize(Tensor.Q8_0, data), dequantize(Tensor.Q8_0, data.copy()))
    assert dequantize(Tensor.Q8_0, np.empty((0, 34), np.uint8)).shape == (0, 32)


def test_f32_is_a_view() -> None:
    data = np.zeros(16, np.uint8)
    assert np.shares_memory(dequantize(Tensor.F32, data), data)


def test_what_cannot_be_dequantised_is_refused_with_what_can() -> None:
    with pytest.raises(UnsupportedModelError, match=r"Q8_K cannot be dequantised; .*Q4_0.*IQ4_XS"):
        dequantize(Tensor.Q8_K, np.zeros(292, np.uint8))


@pytest.mark.parametrize(
    "data", [np.zeros(33, np.uint8), np.zeros(34, np.int8), np.zeros((), np.uint8)]
)
def test_a_wrong_array_breaks_the_contract(data: np.ndarray) -> None:
    with pytest.raises(KernelContractError, match=r"data: expected uint8.* for Q8_0, got "):
        dequantize(Tensor.Q8_0, data)
