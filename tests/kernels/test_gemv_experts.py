"""Matrix x vector with chosen experts: what gemv makes of each slot's own expert, to the bit."""

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
from m40llm.fuzz.bounds import assert_within, gated_sums_bound
from m40llm.gguf.blocks import FORMATS
from m40llm.kernels.gemv import gemv
from m40llm.kernels.gemv_experts import gemv_experts, gemv_experts_swiglu
from m40llm.kernels.layouts import DENSE

N_EXPERTS = 6
seeds = st.integers(0, 2**32)


def named(value: Any) -> str | None:
    """A type's name in the test's; the default for the rest."""
    return getattr(value, "name", None)


def width(ggml_type: GGMLType, n_units: int) -> int:
    """About 32 * n_units columns, in whole blocks."""
    if ggml_type in DENSE:
        return 8 * n_units
    block = FORMATS[ggml_type].n_weights
    return max(n_units * 32 // block, 1) * block


# type, rows a warp, slots that share a row of x: each is compiled once
FORMS = [
    *((ggml_type, 4, 2) for ggml_type in (*DENSE, *QUANTISED)),
    (GGMLType.F16, 1, 1),
    (GGMLType.Q4_0, 2, 1),
    (GGMLType.Q6_K, 1, 3),
]


@pytest.mark.parametrize(("ggml_type", "warp_rows", "x_slots"), FORMS, ids=named)
@given(n_x=st.integers(1, 3), n_out=st.integers(1, 40), n_units=st.integers(1, 36), seed=seeds)
@example(n_x=2, n_out=33, n_units=32, seed=0)
@settings(max_examples=8)
def test_integers_are_exact(
    launcher: Any, ggml_type: GGMLType, warp_rows: int, x_slots: int, n_x: int, n_out: int,
    n_units: int, seed: int,
) -> None:  # fmt: skip
    rng, n_cols = np.random.default_rng(seed), width(ggml_type, n_units)
    data = integer_blocks(rng, ggml_type, N_EXPERTS * n_out, n_cols)
    x = integers(rng, n_x, n_cols, most=1)  # sums stay below 2^24: see test_gemv_quant.py
    ids = rng.integers(0, N_EXPERTS, n_x * x_slots).astype(np.int32)
    w, weights = planes_and_weights(launcher, ggml_type, data, n_cols)
    out = launcher.poisoned((ids.size, n_out))
    args = launcher.upload(x, read_only=True), launcher.upload(ids, read_only=True), out
    gemv_experts(w, *args, stream=launcher.reordered(seed), warp_rows=warp_rows)
    of_experts = weights.reshape(N_EXPERTS, n_out, n_cols)
    expected = reference.matmul_experts(of_experts, x, ids)
    np.testing.assert_array_equal(launcher.read(out), expected)


@pytest.mark.parametrize("type_name", ["F16", "Q4_K", "Q6_K"])
@pytest.mark.parametrize("n_cols", [768, 4352])
def test_a_slot_is_gemv_of_its_expert(launcher: Any, type_name: str, n_cols: int) -> None:
    """To the bit, so that who is beside it changes nothing; 4352: more than a chunk of x."""
    rng, ggml_type, n_out = np.random.default_rng(n_cols), GGMLType[type_name], 19
    data = normal_blocks(rng, ggml_type, N_EXPERTS * n_out, n_cols)
    x, ids = rng.standard_normal((2, n_cols), np.float32), np.array([4, 0, 4, 5, 4, 1], np.int32)
    w, _ = planes_and_weights(launcher, ggml_type, data, n_cols)
    out, alone = launcher.poisoned((6, n_out)), launcher.poisoned((1, n_out))
    gemv_experts(w, launcher.upload(x), launcher.upload(ids), out, stream=launcher)
    for i, expert in enumerate(ids):
        rows, row = w[slice(expert * n_out, (expert + 1) * n_out)], x[i // 3 : i // 3 + 1]
        gemv(rows, launcher.upload(row), alone, stream=launcher)
        np.testing.assert_array_equal(launcher.read(out)[i], launcher.read(alone)[0])


@pytest.mark.parametrize(
    ("ggml_type", "warp_rows"),
    [(GGMLType.F16, 2), (GGMLType.Q4_K, 4), (GGMLType.Q8_0, 2), (GGMLType.IQ4_XS, 4)],
    ids=named,
)
@given(n_tokens=st.integers(1, 3), n_out=st.integers(1, 24), seed=seeds)
@settings(max_examples=8)
def test_swiglu(
    launcher: Any, ggml_type: GGMLType, warp_rows: int, n_tokens: int, n_out: int, seed: int
) -> None:
    rng, n_cols = np.random.default_rng(seed), 256
    data = normal_blocks(rng, ggml_type, 2 * N_EXPERTS * n_out, n_cols)
    x = rng.standard_normal((n_tokens, n_cols), np.float32) / np.float32(8)
    ids = rng.integers(0, N_EXPERTS, 2 * n_tokens).astype(np.int32)
    w, weights = planes_and_weights(launcher, ggml_type, data, n_cols)
    out = launcher.poisoned((ids.size, n_out))
    args = launcher.upload(x), launcher.upload(ids), out
    gemv_experts_swiglu(w, *args, stream=launcher, warp_rows=warp_rows)
    y, error = (
        np.concatenate([half.reshape(n_tokens, N_EXPERTS, n_out)[rows, ids] for half in halves], 1)
        for rows in [np.arange(ids.size) // 2]
        for halves in (
            np.split(reference.matmul(weights, x), 2, axis=1),
            np.split(error_bound(ggml_type, data, x), 2, axis=1),
        )
    )
    expected = reference.swiglu(*np.split(y, 2, axis=1))
    assert_within(launcher.read(out), expected, gated_sums_bound(y, error, expected))


def test_contract(launcher: Any) -> None:
    data = np.zeros((6, 32), np.uint8)  # three experts of two rows
    w, _ = planes_and_weights(launcher, GGMLType.F16, data, 16)
    x, ids, out = np.zeros((2, 16), np.float32), np.zeros(4, np.int32), np.zeros((4, 2), np.float32)
    with pytest.raises(KernelContractError, match="x: expected a divisor of the 4 slots, got 3"):
        gemv_experts(w, np.zeros((3, 16), np.float32), ids, out, stream=launcher)
    with pytest.raises(KernelContractError, match="x: expected a divisor of the 4 slots, got 0"):
        gemv_experts(w, x[:0], ids, out, stream=launcher)
    with pytest.raises(KernelContractError, match="ids: expected at most 65535 slots, got 65536"):
        gemv_experts(w, x, np.zeros(65536, np.int32), out, stream=launcher)
    with pytest.raises(KernelContractError, match=r"ids: expected int32\[\*\], got int64"):
        gemv_experts(w, x, ids.astype(np.int64), out, stream=launcher)
    with pytest.raises(KernelContractError, match=r"out: expected float32\[4, \*\]"):
        gemv_experts(w, x, ids, out[:2], stream=launcher)
    with pytest.raises(KernelContractError, match="w: expected the 4 rows of each expert"):
        gemv_experts_swiglu(w, x, ids, out, stream=launcher)
