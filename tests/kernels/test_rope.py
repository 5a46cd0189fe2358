"""rope and its fusion with the append to the KV cache."""

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from m40llm import reference
from m40llm.errors import KernelContractError
from m40llm.fuzz.bounds import assert_within, rope_bound
from m40llm.kernels.rope import rope, rope_append

POISON = np.float16(6e4)  # what lies in the cache where nobody wrote
SEEDS = st.integers(0, 2**32 - 1)
LAYOUTS = st.sampled_from(["interleaved", "half"])
HEAD_DIMS = st.sampled_from([2, 6, 32, 64, 80, 96, 128, 256])


def table(n_pos: int, n_pairs: int) -> tuple[np.ndarray, np.ndarray]:
    angles = np.outer(np.arange(n_pos), 10000.0 ** (-np.arange(n_pairs) / n_pairs))
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def whole_numbers(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(-8, 9, shape).astype(np.float32)


@given(
    n_tokens=st.integers(1, 4), n_heads=st.integers(1, 9), head_dim=HEAD_DIMS, layout=LAYOUTS,
    rotated=st.sampled_from([0.25, 0.5, 1.0]), seed=SEEDS,
)  # fmt: skip
@example(n_tokens=1, n_heads=1, head_dim=2, layout="half", rotated=1.0, seed=0)
def test_rope(
    launcher: Any, n_tokens: int, n_heads: int, head_dim: int, layout: str, rotated: float,
    seed: int,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 3, (n_tokens, n_heads, head_dim)).astype(np.float32)
    pos = rng.integers(0, 50, n_tokens).astype(np.int32)
    cos, sin = table(50, max(1, int(head_dim * rotated) // 2))
    on_device = launcher.upload(x)
    arguments = [launcher.upload(a, read_only=True) for a in (pos, cos, sin)]
    rope(on_device, *arguments, layout, stream=launcher.reordered(seed))
    expected = reference.rope(x, pos, cos, sin, layout)
    # Two products and a sum: three roundings of at most |a| + |b| (|cos|, |sin| <= 1).
    assert_within(launcher.read(on_device), expected, rope_bound(x))
    np.testing.assert_array_equal(
        launcher.read(on_device)[..., 2 * cos.shape[1] :], x[..., 2 * cos.shape[1] :]
    )


class Append:
    """One call of rope_append on drawn rows of several sequences."""

    def __init__(self, seed: int, n_tokens: int, n_kv_heads: int, head_dim: int, n_pairs: int):
        rng = np.random.default_rng(seed)
        n_seqs, max_seq_len = 3, 11
        places = rng.choice(n_seqs * max_seq_len, n_tokens, replace=False)
        self.seq, self.pos = (a.astype(np.int32) for a in divmod(places, max_seq_len))
        self.q = whole_numbers(rng, n_tokens, 2 * n_kv_heads, head_dim)
        self.k = whole_numbers(rng, n_tokens, n_kv_heads, head_dim)
        self.v = whole_numbers(rng, n_tokens, n_kv_heads, head_dim) * np.float32(1 + 2**-11)
        # Whole numbers for cosine and sine: every product is exact, each index has its own.
        self.cos = whole_numbers(rng, max_seq_len, n_pairs)
        self.sin = whole_numbers(rng, max_seq_len, n_pairs)
        self.cache = np.full((n_seqs, n_kv_heads, max_seq_len, head_dim), POISON)

    def run(self, launcher: Any, stream: Any, layout: str) -> list[np.ndarray]:
        """(q, k_cache, v_cache) afterwards."""
        q, k_cache, v_cache = (launcher.upload(a) for a in (self.q, self.cache, self.cache))
        k, v, *rows = (
            launcher.upload(a, read_only=True)
            for a in (self.k, self.v, self.seq, self.pos, self.cos, self.sin)
        )
        rope_append(q, k, v, k_cache, v_cache, *rows, layout, stream=stream)
        return [launcher.read(a) for a in (q, k_cache, v_cache)]


@given(
    n_tokens=st.integers(1, 6), n_kv_heads=st.integers(1, 5), head_dim=HEAD_DIMS, layout=LAYOUTS,
    rotated=st.sampled_from([0.25, 1.0]), seed=SEEDS,
)  # fmt: skip
@example(n_tokens=1, n_kv_heads=1, head_dim=80, layout="half", rotated=0.25, seed=0)
def test_rope_append(
    launcher: Any, n_tokens: int, n_kv_heads: int, head_dim: int, layout: str, rotated: float,
    seed: int,
) -> None:  # fmt: skip
    n_pairs = max(1, int(head_dim * rotated) // 2)
    case = Append(seed, n_tokens, n_kv_heads, head_dim, n_pairs)
    q, k_cache, v_cache = case.run(launcher, launcher.reordered(seed), layout)
    turned = [reference.rope(x, case.pos, case.cos, case.sin, layout) for x in (case.q, case.k)]
    np.testing.assert_array_equal(q, turned[0])
    expected_k = reference.append(turned[1], case.cache, case.seq, case.pos)
    np.testing.assert_array_equal(k_cache, expected_k)
    np.testing.assert_array_equal(v_cache, reference.append(case.v, case.cache, case.seq, case.pos))


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_what_fp16_cannot_hold(launcher: Any, layout: str) -> None:
    """Finite values stay finite; NaN stays NaN, so that damage is seen."""
    case = Append(0, 1, 1, 8, 2)
    case.k[0, 0] = case.v[0, 0] = [7e4, -7e4, 65519, -1e30, np.inf, -np.inf, np.nan, 1]
    case.cos[:], case.sin[:] = 1, 0
    _, k_cache, v_cache = case.run(launcher, launcher, layout)
    most = 65504.0
    expected = np.array([most, -most, most, -most, most, -most, np.nan, 1], np.float16)
    at = case.seq[0], 0, case.pos[0]
    np.testing.assert_array_equal(v_cache[at], expected)
    np.testing.assert_array_equal(k_cache[at][:4], expected[:4])
    np.testing.assert_array_equal(k_cache[at][4:], expected[4:])


def test_beyond_2_to_31_elements(launcher: Any) -> None:
    """A sparse cache of 2^31 + elements: only the pages that are written exist."""
    if not hasattr(launcher, "emulator"):
        pytest.skip("a card's memory is not sparse")
    shape = (3, 1, 2**24, 64)  # 3.2e9 elements
    k_cache, v_cache = np.zeros(shape, np.float16), np.zeros(shape, np.float16)
    rng = np.random.default_rng(0)
    q, k, v = (whole_numbers(rng, 2, 1, 64) for _ in range(3))
    seq, pos = np.array([2, 1], np.int32), np.array([2**24 - 1, 7], np.int32)
    cos, sin = np.zeros((2**24, 1), np.float32), np.zeros((2**24, 1), np.float32)
    cos[pos] = [[1], [-1]]
    rope_append(q, k, v, k_cache, v_cache, seq, pos, cos, sin, "interleaved", stream=launcher)
    np.testing.assert_array_equal(k_cache[2, 0, -1, 2:], k[0, 0, 2:])
    np.testing.assert_array_equal(k_cache[1, 0, 7, :2], -k[1, 0, :2])
    np.testing.assert_array_equal(v_cache[seq, 0, pos], v[:, 0])


def test_contract(launcher: Any) -> None:
    x, pos = np.zeros((1, 2, 8), np.float32), np.zeros(1, np.int32)
    wide = np.zeros((4, 5), np.float32)
    with pytest.raises(KernelContractError, match="5 pairs, more than head_dim 8 has"):
        rope(x, pos, wide, wide, "half", stream=launcher)
    with pytest.raises(KernelContractError, match="layout: expected one of"):
        rope(x, pos, wide[:, :4].copy(), wide[:, :4].copy(), "neox", stream=launcher)
