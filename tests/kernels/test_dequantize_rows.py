"""Dequantised rows equal gguf.quants bit for bit."""

from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as GGMLType
from hypothesis import example, given, settings
from hypothesis import strategies as st
from matmul_cases import planes_and_weights

from m40llm import reference
from m40llm.errors import KernelContractError
from m40llm.gguf.blocks import FORMATS, row_bytes
from m40llm.kernels.dequantize_rows import dequantize_rows
from m40llm.kernels.layouts import DENSE, LAYOUTS

seeds = st.integers(0, 2**32)


def width(ggml_type: GGMLType, n_units: int) -> int:
    """F32 may end after four."""
    each = {GGMLType.F32: 4, GGMLType.F16: 8}
    return n_units * each.get(ggml_type, FORMATS[ggml_type].n_weights)


@pytest.mark.parametrize("ggml_type", [*DENSE, *LAYOUTS], ids=lambda t: t.name)
@given(n_rows=st.integers(1, 6), n_units=st.integers(1, 5), first=st.integers(0, 5), seed=seeds)
@example(n_rows=3, n_units=260, first=1, seed=0)
@settings(max_examples=20)
def test_any_bytes_bit_for_bit(
    launcher: Any, ggml_type: GGMLType, n_rows: int, n_units: int, first: int, seed: int
) -> None:
    """Random bytes: scales of every size, infinity and NaN included."""
    n_cols, first = width(ggml_type, n_units), min(first, n_rows)
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, (n_rows, row_bytes(ggml_type, n_cols)), np.uint8)
    w, _ = planes_and_weights(launcher, ggml_type, data, n_cols)
    out = launcher.poisoned((n_rows - first, n_cols))
    dequantize_rows(w, first, out, stream=launcher.reordered(seed))
    got, expected = launcher.read(out), reference.dequantize_rows(ggml_type, data, first)
    same_bits = got.view(np.uint32) == expected.view(np.uint32)
    assert (same_bits | np.isnan(got) & np.isnan(expected)).all()  # a NaN's payload may differ


def test_what_it_refuses(launcher: Any) -> None:
    w, _ = planes_and_weights(launcher, GGMLType.F16, np.zeros((4, 32), np.uint8), 16)
    for first_row in (-1, 3):
        with pytest.raises(KernelContractError, match="first_row: expected 2 of 4 rows"):
            dequantize_rows(w, first_row, np.zeros((2, 16), np.float32), stream=launcher)
    with pytest.raises(KernelContractError, match=r"out: expected float32\[\*, 16\]"):
        dequantize_rows(w, 0, np.zeros((2, 8), np.float32), stream=launcher)
