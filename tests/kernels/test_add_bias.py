"""add_bias: one rounding an element, so equal to the reference rounded once, bit for bit."""

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from m40llm import reference
from m40llm.errors import KernelContractError
from m40llm.kernels.add_bias import add_bias


@given(n_tokens=st.integers(1, 5), n_cols=st.integers(1, 600), seed=st.integers(0, 2**32 - 1))
@example(n_tokens=1, n_cols=1, seed=0)
@example(n_tokens=3, n_cols=257, seed=1)
@settings(max_examples=15)
def test_add_bias(launcher: Any, n_tokens: int, n_cols: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    before = rng.standard_normal((n_tokens, n_cols), np.float32)
    bias = rng.standard_normal(n_cols, np.float32)
    out = launcher.upload(before)
    add_bias(launcher.upload(bias, read_only=True), out, stream=launcher.reordered(seed))
    np.testing.assert_array_equal(launcher.read(out), reference.add_bias(bias, before).astype("f4"))


def test_what_it_refuses(launcher: Any) -> None:
    with pytest.raises(KernelContractError, match=r"bias: expected float32\[4\]"):
        add_bias(np.zeros(3, np.float32), np.zeros((1, 4), np.float32), stream=launcher)
