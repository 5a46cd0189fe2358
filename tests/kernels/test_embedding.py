"""embedding: every block format dequantised on the device as gguf.quants defines it."""

from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as GGMLType
from hypothesis import given
from hypothesis import strategies as st

from m40llm.errors import KernelContractError
from m40llm.gguf.blocks import FORMATS, dequantize
from m40llm.kernels.embedding import embedding, take_rows
from m40llm.kernels.quant_blocks import WEIGHT_OF

SEEDS = st.integers(0, 2**32 - 1)


def gathered(launcher: Any, kind: GGMLType, table: np.ndarray, ids: np.ndarray, n: int) -> Any:
    out = launcher.poisoned((ids.size, n))
    on_device = launcher.upload(table, read_only=True)
    embedding(on_device, kind, launcher.upload(ids), out, stream=launcher)
    return launcher.read(out)


def assert_same_bits(got: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
    bits = [np.where(np.isnan(a), 0, a).astype(np.float32).view(np.uint32) for a in (got, expected)]
    np.testing.assert_array_equal(*bits)


@pytest.mark.parametrize("kind", WEIGHT_OF, ids=lambda kind: kind.name)
@given(n_blocks=st.integers(1, 9), n_tokens=st.integers(1, 5), seed=SEEDS)
def test_any_bytes(launcher: Any, kind: GGMLType, n_blocks: int, n_tokens: int, seed: int) -> None:
    """Random bytes are valid blocks, with scales of every size, infinity and NaN included."""
    rng = np.random.default_rng(seed)
    block = FORMATS[kind]
    n = n_blocks * block.n_weights
    table = rng.integers(0, 256, (7, n_blocks * block.n_bytes), np.uint8)
    ids = rng.integers(0, 7, n_tokens).astype(np.int32)
    got = gathered(launcher, kind, table, ids, n)
    assert_same_bits(got, dequantize(kind, table)[ids])


@pytest.mark.parametrize("kind", [GGMLType.Q4_0, GGMLType.Q6_K], ids=lambda kind: kind.name)
def test_long_rows(launcher: Any, kind: GGMLType) -> None:
    rng, block = np.random.default_rng(0), FORMATS[kind]
    n_blocks = 2560 // block.n_weights
    table = rng.integers(0, 256, (3, n_blocks * block.n_bytes), np.uint8)
    ids = np.array([2, 0, 2], np.int32)
    got = gathered(launcher, kind, table, ids, 2560)
    assert_same_bits(got, dequantize(kind, table)[ids])


@given(n_rows=st.integers(1, 6), n_embd=st.integers(1, 600), seed=SEEDS)
def test_take_rows(launcher: Any, n_rows: int, n_embd: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.integers(-99, 99, (9, n_embd)).astype(np.float32)
    rows = rng.integers(0, 9, n_rows).astype(np.int32)
    out = launcher.poisoned((n_rows, n_embd))
    take_rows(launcher.upload(x), launcher.upload(rows), out, stream=launcher.reordered(seed))
    np.testing.assert_array_equal(launcher.read(out), x[rows])


def test_contract(launcher: Any) -> None:
    ids, out = np.zeros(1, np.int32), np.zeros((1, 32), np.float32)
    with pytest.raises(KernelContractError, match=r"table: expected uint8\[\*, 18\]"):
        embedding(np.zeros((4, 20), np.uint8), GGMLType.Q4_0, ids, out, stream=launcher)
    with pytest.raises(KernelContractError, match="no kernel reads type IQ1_S"):
        embedding(np.zeros((4, 20), np.uint8), GGMLType.IQ1_S, ids, out, stream=launcher)
