"""add_rows against the FP64 reference."""

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from m40llm import reference
from m40llm.errors import KernelContractError
from m40llm.fuzz.bounds import add_rows_bound, assert_within
from m40llm.kernels.add_rows import add_rows


@given(
    n_tokens=st.integers(1, 6), n_cols=st.integers(1, 600), part=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
@example(n_tokens=1, n_cols=1, part=1.0, seed=0)
@example(n_tokens=5, n_cols=256, part=0.5, seed=1)
def test_add_rows(launcher: Any, n_tokens: int, n_cols: int, part: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.permutation(n_tokens)[: max(round(part * n_tokens), 1)].astype(np.int32)
    x = rng.standard_normal((n_tokens, n_cols), np.float32)
    y = rng.standard_normal((rows.size, n_cols), np.float32)
    shares = rng.uniform(0, 1, rows.size).astype(np.float32)
    x_on = launcher.upload(x)
    others = (launcher.upload(a, read_only=True) for a in (rows, shares, y))
    add_rows(x_on, *others, stream=launcher.reordered(seed))
    bound = add_rows_bound(x, rows, shares, y)
    assert_within(launcher.read(x_on), reference.add_rows(x, rows, shares, y), bound)


def test_contract(launcher: Any) -> None:
    x, rows, shares = np.zeros((2, 3), np.float32), np.zeros(1, np.int32), np.ones(1, np.float32)
    with pytest.raises(KernelContractError, match="y: expected"):
        add_rows(x, rows, shares, np.zeros((1, 4), np.float32), stream=launcher)
    with pytest.raises(KernelContractError, match="shares: expected"):
        add_rows(x, rows, np.ones(2, np.float32), np.zeros((1, 3), np.float32), stream=launcher)
