"""Planes: nothing of a block is lost, and the device reads every weight of them bit for bit."""

from functools import cache
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as GGMLType
from hypothesis import example, given
from hypothesis import strategies as st
from matmul_cases import QUANTISED, upload
from numba import cuda, float32, uint32

from m40llm.errors import KernelContractError
from m40llm.gguf.blocks import FORMATS, dequantize, row_bytes
from m40llm.kernels.contract import Kernel
from m40llm.kernels.dequantize import convert, decode_scales, fetch, fetch_scales, row_start
from m40llm.kernels.layouts import DENSE
from m40llm.kernels.planes import Planes, check_planes, from_blocks, to_blocks

TYPES = (*DENSE, *QUANTISED)
sizes = {"n_rows": st.integers(1, 5), "n_units": st.integers(1, 4), "seed": st.integers(0, 2**32)}


def random_blocks(ggml_type: GGMLType, n_rows: int, n_cols: int, seed: int) -> np.ndarray:
    """Any bytes at all."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n_rows, row_bytes(ggml_type, n_cols)), np.uint8)


def width(ggml_type: GGMLType, n_units: int) -> int:
    return n_units * (8 if ggml_type in DENSE else FORMATS[ggml_type].n_weights)


@pytest.mark.parametrize("ggml_type", TYPES, ids=lambda t: t.name)
@given(**sizes)
def test_round_trip(ggml_type: GGMLType, n_rows: int, n_units: int, seed: int) -> None:
    n_cols = width(ggml_type, n_units)
    data = random_blocks(ggml_type, n_rows, n_cols, seed)
    planes = from_blocks(ggml_type, n_rows, n_cols, data.reshape(-1))
    check_planes(planes)
    np.testing.assert_array_equal(to_blocks(planes), data)
    some = slice(n_rows // 2, None)
    np.testing.assert_array_equal(to_blocks(planes[some]), data[some])
    arrays = [plane for plane in (planes.quants, planes.highs, planes.scales) if plane is not None]
    assert sum(plane.nbytes for plane in arrays) == data.nbytes  # not a byte more to read
    if ggml_type != GGMLType.F32:
        assert planes.quants.strides[0] % 16 == 0


@cache
def _read_weights(ggml_type: GGMLType) -> Kernel:
    fetch_eight, convert_eight = fetch(ggml_type), convert(ggml_type)
    fetch_words, decode_words = fetch_scales(ggml_type), decode_scales(ggml_type)
    find_start = row_start(ggml_type)

    def read_weights(quants: Any, highs: Any, scales: Any, out: Any) -> None:
        raw, words = cuda.local.array(8, uint32), cuda.local.array(4, uint32)
        weights = cuda.local.array(8, float32)
        row, n_cols = cuda.blockIdx.x, out.shape[1]
        for col in range(8 * cuda.threadIdx.x, n_cols, 8 * cuda.blockDim.x):
            fetch_eight(quants, highs, row, find_start(quants, row), col, n_cols, raw)
            fetch_words(scales, row, col, words)
            scale, minimum = decode_words(words, col)
            convert_eight(raw, scale, minimum, col, weights)
            for k in range(min(8, n_cols - col)):
                out[row, col + k] = weights[k]

    return Kernel(read_weights)


def read_on_device(launcher: Any, planes: Planes) -> np.ndarray:
    out = launcher.poisoned((planes.n_rows, planes.n_cols))
    w = upload(launcher, planes)
    highs, scales = (w.quants if plane is None else plane for plane in (w.highs, w.scales))
    kernel = _read_weights(planes.type)
    launcher.launch(kernel, planes.n_rows, 32, w.quants, highs, scales, out)
    return launcher.read(out)


@pytest.mark.parametrize("ggml_type", TYPES, ids=lambda t: t.name)
@given(**sizes)
@example(n_rows=2, n_units=40, seed=0)
def test_every_weight_bit_for_bit(
    launcher: Any, ggml_type: GGMLType, n_rows: int, n_units: int, seed: int
) -> None:
    n_cols = width(ggml_type, n_units)
    data = random_blocks(ggml_type, n_rows, n_cols, seed)
    planes = from_blocks(ggml_type, n_rows, n_cols, data)
    expected, read = dequantize(ggml_type, data), read_on_device(launcher, planes)
    same_bits = read.view(np.uint32) == expected.view(np.uint32)
    assert (same_bits | np.isnan(expected) & np.isnan(read)).all()  # a NaN's payload may differ


def test_every_exponent_of_mxfp4(launcher: Any) -> None:
    """The two whose scale is subnormal, too."""
    data = random_blocks(GGMLType.MXFP4, 1, 256 * 32, 0).reshape(256, 17)
    data[:, 0] = np.arange(256)
    planes = from_blocks(GGMLType.MXFP4, 1, 256 * 32, data)
    expected = dequantize(GGMLType.MXFP4, data.reshape(1, -1))
    read = read_on_device(launcher, planes)
    np.testing.assert_array_equal(read.view(np.uint32), expected.view(np.uint32))


def test_f32_may_end_after_four() -> None:
    data = np.arange(2 * 12, dtype=np.float32).reshape(2, 12)
    planes = from_blocks(GGMLType.F32, 2, 12, data.view(np.uint8))
    np.testing.assert_array_equal(to_blocks(planes), data.view(np.uint8))


@pytest.mark.parametrize(("type_name", "n_cols"), [("F16", 12), ("F32", 6)])
def test_rows_off_16_bytes_are_refused(type_name: str, n_cols: int) -> None:
    data = np.zeros((3, row_bytes(GGMLType[type_name], n_cols)), np.uint8)
    with pytest.raises(KernelContractError, match="rows of a multiple of 16 bytes"):
        from_blocks(GGMLType[type_name], 3, n_cols, data)


def test_types_without_planes_are_refused() -> None:
    with pytest.raises(KernelContractError, match="IQ2_S"):
        from_blocks(GGMLType.IQ2_S, 1, 256, np.zeros((1, 82), np.uint8))


def test_planes_of_another_width_are_refused() -> None:
    planes = from_blocks(GGMLType.Q5_K, 2, 512, random_blocks(GGMLType.Q5_K, 2, 512, 0))
    wrong = Planes(GGMLType.Q5_K, 256, planes.quants, planes.highs, planes.scales)
    with pytest.raises(KernelContractError, match=r"w.quants: expected uint32\[\*, 32\]"):
        check_planes(wrong)
