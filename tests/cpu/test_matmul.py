"""The matrix product on packed blocks: exact on integers, within FP32's bound on the rest."""

import numpy as np
import pytest
from gguf import GGMLQuantizationType as GGMLType
from gguf import quants
from hypothesis import example, given
from hypothesis import strategies as st

from m40llm import reference
from m40llm.device.cpu.matmul import ROWS_AT_ONCE, matmul
from m40llm.device.cpu.ops import CpuOps, Matrix
from m40llm.device.cpu.vectors import MAX_VECTORS
from m40llm.errors import KernelContractError
from m40llm.gguf.blocks import can_dequantize, dequantize, row_bytes
from m40llm.testing.noisy_ops import gamma
from m40llm.testing.random_blocks import WRITABLE, random_tensor

OPS = CpuOps()


def matrix_of(ggml_type: GGMLType, data: np.ndarray, n_cols: int) -> Matrix:
    flat = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
    flat.flags.writeable = False  # as a mapped file is
    return OPS.matrix(ggml_type, data.shape[0], n_cols, flat)


def integers(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Small integers: every FP32 partial sum is exact, so a dropped term cannot hide."""
    return rng.integers(-4, 5, shape).astype(np.float32)


@pytest.mark.parametrize("type_name", ["F32", "F16", "BF16"])
@given(
    n_tokens=st.integers(1, 40),
    n_rows=st.integers(1, 2 * ROWS_AT_ONCE + 3),
    n_units=st.integers(1, 40),
    accumulate=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
@example(n_tokens=MAX_VECTORS, n_rows=1, n_units=1, accumulate=True, seed=0)
@example(n_tokens=MAX_VECTORS + 1, n_rows=ROWS_AT_ONCE, n_units=32, accumulate=False, seed=0)
@example(n_tokens=17, n_rows=ROWS_AT_ONCE + 1, n_units=33, accumulate=True, seed=0)
def test_integers_are_exact(
    type_name: str, n_tokens: int, n_rows: int, n_units: int, accumulate: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    ggml_type, n_cols = GGMLType[type_name], 32 * n_units
    w, x = integers(rng, n_rows, n_cols), integers(rng, n_tokens, n_cols)
    before = integers(rng, n_tokens, n_rows) if accumulate else np.full((n_tokens, n_rows), np.nan)
    out = before.astype(np.float32)
    matmul(
        matrix_of(ggml_type, quants.quantize(w, ggml_type), n_cols), x, out, accumulate=accumulate
    )
    expected = reference.matmul(w, x) + (before if accumulate else 0)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize(
    "ggml_type", [t for t in GGMLType if can_dequantize(t)], ids=lambda t: t.name
)
@pytest.mark.parametrize("n_tokens", [1, 5, 17])
def test_every_type_within_the_bound(ggml_type: GGMLType, n_tokens: int) -> None:
    n_rows, n_cols = 51, 512
    rng = np.random.default_rng(7)
    if ggml_type in WRITABLE:
        data = random_tensor(rng, (n_rows, n_cols), 1.0, ggml_type)
    else:
        data = rng.integers(0, 64, (n_rows, row_bytes(ggml_type, n_cols)), np.uint8)
    data = np.ascontiguousarray(data).view(np.uint8).reshape(n_rows, -1)
    w, x = dequantize(ggml_type, data), rng.standard_normal((n_tokens, n_cols), np.float32)
    out = np.full((n_tokens, n_rows), np.nan, np.float32)
    matmul(matrix_of(ggml_type, data, n_cols), x, out, accumulate=False)
    bound = gamma(n_cols) * (np.abs(x).astype(np.float64) @ np.abs(w).astype(np.float64).T)
    assert (np.abs(out - reference.matmul(w, x)) <= bound).all()


@pytest.mark.parametrize("n_cols", [1, 31, 172])
def test_widths_that_no_vector_divides(n_cols: int) -> None:
    rng = np.random.default_rng(0)
    w, x = integers(rng, 7, n_cols), integers(rng, 3, n_cols)
    out = np.full((3, 7), np.nan, np.float32)
    matmul(matrix_of(GGMLType.F32, w, n_cols), x, out, accumulate=False)
    np.testing.assert_array_equal(out, reference.matmul(w, x))


def test_a_token_does_not_depend_on_its_company() -> None:
    """In a panel, too, a token has the same bits beside any others; few: test_vectors.py."""
    rng = np.random.default_rng(3)
    w = matrix_of(GGMLType.F32, rng.standard_normal((70, 96), np.float32), 96)
    x = rng.standard_normal((37, 96), np.float32)
    n = MAX_VECTORS + 1
    whole, part = np.empty((37, 70), np.float32), np.empty((n, 70), np.float32)
    matmul(w, x, whole, accumulate=False)
    matmul(w, x[11 : 11 + n].copy(), part, accumulate=False)
    np.testing.assert_array_equal(whole[11 : 11 + n], part)


def test_wrong_shapes_name_both() -> None:
    w = matrix_of(GGMLType.F32, np.zeros((4, 32), np.float32), 32)
    with pytest.raises(KernelContractError, match=r"x\[t, 32\] and out\[t, 4\], got \(1, 31\)"):
        matmul(w, np.zeros((1, 31), np.float32), np.zeros((1, 4), np.float32), accumulate=False)
