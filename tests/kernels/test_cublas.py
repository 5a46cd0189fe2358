"""Products by cuBLAS: as those of our kernels, on a card; on the emulator with NumPy's sgemm.

The stand-in has BLAS's own conventions, so that what a call says of shapes, strides and
transposes is held to them; only the arithmetic is not cuBLAS's.
"""

import importlib
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from fake_blas import FakeBlas
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
from m40llm.device.cuda import cublas
from m40llm.device.cuda.cublas import CublasProducts, open_cublas
from m40llm.device.gpu.ops import GpuOps
from m40llm.device.packages import CUBLAS_PACKAGES
from m40llm.errors import DeviceError
from m40llm.fuzz.launchers import EmulatedLauncher, card_launcher
from m40llm.gguf.blocks import FORMATS
from m40llm.kernels.layouts import DENSE

SLAB_BYTES = 64 << 10  # small, so that ordinary matrices take several slabs
seeds = st.integers(0, 2**32)


class StreamedEmulator(EmulatedLauncher):
    """A card with a stream; unchecked, as it does not see what the stand-in of cuBLAS writes."""

    stream_handle = 77

    def __init__(self) -> None:
        super().__init__(checks=False)


@dataclass
class Bench:
    """Where a product runs: `card` has the calls of the fixture `launcher`."""

    card: Any
    products: CublasProducts
    blas: Any


@pytest.fixture(scope="module")
def emulated() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cublas, "_address", lambda array: array.__array_interface__["data"][0])
        patch.setattr(cublas, "WORKSPACE_BYTES", 4096)
        card, blas = StreamedEmulator(), FakeBlas()
        yield Bench(card, CublasProducts(card, blas, SLAB_BYTES), blas)


@pytest.fixture(scope="module")
def on_card() -> Bench:
    blas = importlib.import_module("nvmath.bindings.cublas")
    card = card_launcher()
    return Bench(card, CublasProducts(card, blas, SLAB_BYTES), blas)


@pytest.fixture(scope="module", params=["emulated", pytest.param("on_card", marks=pytest.mark.gpu)])
def bench(request: pytest.FixtureRequest) -> Any:
    if request.param == "on_card":
        pytest.importorskip("nvmath", reason=f"no cuBLAS: {CUBLAS_PACKAGES}")
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("ggml_type", [*DENSE, *QUANTISED], ids=lambda t: t.name)
@given(
    n_tokens=st.integers(1, 20), n_rows=st.integers(1, 90), n_units=st.integers(1, 12), seed=seeds
)
@example(n_tokens=1, n_rows=1, n_units=1, seed=0)
@example(n_tokens=3, n_rows=257, n_units=16, seed=0)
@settings(max_examples=10)
def test_integers_are_exact(
    bench: Bench, ggml_type: GGMLType, n_tokens: int, n_rows: int, n_units: int, seed: int
) -> None:
    block = max(FORMATS[ggml_type].n_weights, 8)
    rng, n_cols = np.random.default_rng(seed), max(n_units * 32 // block, 1) * block
    data = integer_blocks(rng, ggml_type, n_rows, n_cols)
    x = integers(rng, n_tokens, n_cols, most=1)
    w, weights = planes_and_weights(bench.card, ggml_type, data, n_cols)
    out = bench.card.poisoned((n_tokens, n_rows))
    bench.products.matmul(w, bench.card.upload(x), out, None, False)
    np.testing.assert_array_equal(bench.card.read(out), reference.matmul(weights, x))


@pytest.mark.parametrize("ggml_type", [GGMLType.F16, *QUANTISED], ids=lambda t: t.name)
def test_ordinary_weights_within_the_bound(bench: Bench, ggml_type: GGMLType) -> None:
    """The bound is FP32's: TF32 or FP16 on the way would pass it by a factor of a thousand."""
    rng = np.random.default_rng(5)
    data, x = normal_blocks(rng, ggml_type, 70, 512), rng.standard_normal((37, 512), np.float32)
    w, weights = planes_and_weights(bench.card, ggml_type, data, 512)
    out = bench.card.poisoned((37, 70))
    bench.products.matmul(w, bench.card.upload(x), out, None, False)
    error = np.abs(bench.card.read(out) - reference.matmul(weights, x))
    assert (error <= error_bound(ggml_type, data, x)).all()


@pytest.mark.parametrize("type_name", ["F32", "Q4_K"])
@pytest.mark.parametrize(("has_bias", "accumulate"), [(True, False), (False, True), (True, True)])
def test_bias_and_residual(bench: Bench, type_name: str, has_bias: bool, accumulate: bool) -> None:
    rng, ggml_type, card = np.random.default_rng(6), GGMLType[type_name], bench.card
    data, x = integer_blocks(rng, ggml_type, 67, 512), integers(rng, 9, 512, most=1)
    w, weights = planes_and_weights(card, ggml_type, data, 512)
    bias, before = integers(rng, 67), integers(rng, 9, 67)
    out = card.upload(before) if accumulate else card.poisoned((9, 67))
    bench.products.matmul(
        w, card.upload(x), out, card.upload(bias) if has_bias else None, accumulate
    )
    expected = reference.matmul(weights, x, bias if has_bias else None)
    np.testing.assert_array_equal(card.read(out), expected + (before if accumulate else 0))


def test_rows_of_a_larger_workspace(bench: Bench) -> None:
    """As the transformer gives them: x and out are the first rows of larger buffers."""
    rng, card = np.random.default_rng(8), bench.card
    data, x = integer_blocks(rng, GGMLType.Q8_0, 70, 64), integers(rng, 9, 64, most=1)
    w, weights = planes_and_weights(card, GGMLType.Q8_0, data, 64)
    out = card.poisoned((9, 70))
    bench.products.matmul(w, card.upload(x)[:4], out[:4], None, False)
    got = card.read(out)
    np.testing.assert_array_equal(got[:4], reference.matmul(weights, x[:4]))
    assert np.isnan(got[4:]).all()


def test_what_a_call_says(emulated: Bench) -> None:
    """m, n, k and the leading dimensions of each slab: rows of 512 weights fit 32 at a time."""
    rng, card, blas = np.random.default_rng(9), emulated.card, emulated.blas
    data, x = integer_blocks(rng, GGMLType.Q4_0, 70, 512), integers(rng, 3, 512, most=1)
    w, _ = planes_and_weights(card, GGMLType.Q4_0, data, 512)
    blas.calls.clear()
    emulated.products.matmul(w, card.upload(x), card.poisoned((3, 70)), None, False)
    assert blas.calls == [(1, 0, m, 3, 512, 512, 512, 70) for m in (32, 32, 6)]


def test_settings(emulated: Bench) -> None:
    """The card's stream, our own workspace, alpha and beta on the host, and no TF32."""
    told = emulated.blas.settings
    assert told["stream"] == (99, 77)
    assert told["workspace"][1] == 4096
    assert told["pointer_mode"] == (99, 0)
    assert told["math_mode"] == (99, 2)


def test_constants_are_those_of_the_binding() -> None:
    blas = pytest.importorskip("nvmath.bindings.cublas", reason=f"no cuBLAS: {CUBLAS_PACKAGES}")
    assert (blas.Operation.N, blas.Operation.T) == (cublas.NO_TRANSPOSE, cublas.TRANSPOSE)
    assert blas.PointerMode.HOST == cublas.POINTERS_ON_HOST
    assert blas.Math.PEDANTIC_MATH == cublas.PEDANTIC_MATH


def test_the_ops_use_it_for_every_product(emulated: Bench) -> None:
    rng, card = np.random.default_rng(2), emulated.card
    ops = GpuOps(card, emulated.products)
    data = integer_blocks(rng, GGMLType.F32, 5, 16)
    w = ops.matrix(GGMLType.F32, 5, 16, data)
    for n_tokens in (1, 9):  # gemv's and gemm's
        x, out = integers(rng, n_tokens, 16), card.poisoned((n_tokens, 5))
        emulated.blas.calls.clear()
        ops.matmul(w, card.upload(x), out=out)
        assert len(emulated.blas.calls) == 1
        expected = reference.matmul(data.view(np.float32), x)
        np.testing.assert_array_equal(card.read(out), expected)


def test_a_failure_says_what_was_asked_and_what_is_free(emulated: Bench) -> None:
    card, blas = emulated.card, emulated.blas
    data = integer_blocks(np.random.default_rng(0), GGMLType.F32, 5, 16)
    w, _ = planes_and_weights(card, GGMLType.F32, data, 16)
    x, out = card.upload(np.ones((2, 16), np.float32)), card.poisoned((2, 5))
    blas.fails = ValueError("CUBLAS_STATUS_EXECUTION_FAILED")
    with pytest.raises(DeviceError, match=r"\[2, 16\] x \[5\].*EXECUTION_FAILED; .* MB free$"):
        emulated.products.matmul(w, x, out, None, False)
    blas.fails = None
    emulated.products.matmul(w, x, out, None, False)


def test_without_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvmath.bindings", None)
    with pytest.raises(DeviceError, match="pip install nvmath-python nvidia-cublas-cu12"):
        open_cublas(None)  # type: ignore[arg-type]
