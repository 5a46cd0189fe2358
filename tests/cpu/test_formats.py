"""Every format's decoder, bit for bit against gguf.quants, on real blocks and on hostile ones."""

import numpy as np
import pytest
from gguf import GGMLQuantizationType as GGMLType
from hypothesis import given
from hypothesis import strategies as st
from numba import njit

from m40llm.device.cpu import simd
from m40llm.device.cpu.formats import FORMATS, UNIT
from m40llm.device.cpu.rows import KINDS, unpack_row
from m40llm.gguf.blocks import dequantize

ALL = list(FORMATS)
SPECIAL_HALVES = [0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x3C00, 0xBC01, 0x7BFF, 0xFBFF, 0x7C00]


def unpacked(ggml_type: GGMLType, blocks: np.ndarray) -> np.ndarray:
    layout = FORMATS[ggml_type]
    n_units = blocks.size // layout.n_bytes * layout.n_weights // UNIT
    out = np.full(n_units * UNIT, np.nan, np.float32)
    unpack_row(KINDS[ggml_type], blocks, 0, n_units, out, 0)
    return out


def assert_same_bits(ggml_type: GGMLType, blocks: np.ndarray) -> None:
    expected, got = dequantize(ggml_type, blocks), unpacked(ggml_type, blocks)
    is_number = ~np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(got), ~is_number)
    np.testing.assert_array_equal(
        got[is_number].view(np.uint32), expected[is_number].view(np.uint32)
    )


@pytest.mark.parametrize("ggml_type", ALL, ids=lambda t: t.name)
@given(seed=st.integers(0, 2**32 - 1), n_blocks=st.integers(1, 9))
def test_any_bytes_decode_as_gguf_quants_says(
    ggml_type: GGMLType, seed: int, n_blocks: int
) -> None:
    n_bytes = FORMATS[ggml_type].n_bytes * n_blocks
    assert_same_bits(ggml_type, np.random.default_rng(seed).integers(0, 256, n_bytes, np.uint8))


@pytest.mark.parametrize("ggml_type", ALL, ids=lambda t: t.name)
@pytest.mark.parametrize("half", SPECIAL_HALVES, ids=hex)
def test_special_scales(ggml_type: GGMLType, half: int) -> None:
    """Zero, subnormal, largest and infinite scales: every pair of bytes may be one."""
    pair = np.array([half], np.uint16).view(np.uint8)
    assert_same_bits(ggml_type, np.tile(pair, FORMATS[ggml_type].n_bytes // 2 * 3))


def _halves_as_float32() -> np.ndarray:
    @njit
    def convert(memory, out):
        for i in range(out.size // 16):
            simd.store_f32(out, i * 16, simd.load_half(memory, i * 32))

    halves = np.arange(2**16, dtype=np.uint16)
    out = np.empty(2**16, np.float32)
    convert(halves.view(np.uint8), out)
    return out


@pytest.mark.parametrize("has_f16c", [False, True])
def test_all_halves(has_f16c: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """All 65,536 halves, by the instruction and by the integers that stand in for it."""
    if has_f16c and not simd.HAS_F16C:
        pytest.skip("this CPU has no F16C")
    monkeypatch.setattr(simd, "HAS_F16C", has_f16c)
    expected = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
    got = _halves_as_float32()
    is_number = ~np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(got), ~is_number)
    np.testing.assert_array_equal(
        got[is_number].view(np.uint32), expected[is_number].view(np.uint32)
    )
