"""rope_append_q8: blocks of the cache, bit for bit those of gguf.quants."""

from typing import Any

import gguf.quants
import numpy as np
import pytest
from gguf import GGMLQuantizationType as GGMLType
from hypothesis import example, given
from hypothesis import strategies as st

from m40llm import reference
from m40llm.errors import KernelContractError
from m40llm.fuzz.contents import blocks_of_any_size
from m40llm.kernels.attention_common import check_q8_cache
from m40llm.kernels.rope_append_q8 import rope_append_q8

Array = np.ndarray
SEEDS = st.integers(0, 2**32 - 1)
N_SEQS, MAX_SEQ_LEN = 3, 11
LARGEST = 127 * 65504.0


def gguf_blocks(x: Array) -> tuple[Array, Array]:
    """(quants, scales) as the gguf package makes them."""
    blocks = gguf.quants.quantize(x.astype(np.float32), GGMLType.Q8_0)
    blocks = blocks.reshape(*x.shape[:-1], -1, 34)
    scales = np.ascontiguousarray(blocks[..., :2]).view(np.float16)[..., 0]
    return np.ascontiguousarray(blocks[..., 2:]).view(np.int8).reshape(x.shape), scales


def assert_same(got: tuple[Array, Array], expected: tuple[Array, Array]) -> None:
    np.testing.assert_array_equal(got[0], expected[0])
    np.testing.assert_array_equal(got[1].view(np.uint16), expected[1].view(np.uint16))


@given(seed=SEEDS)
def test_the_reference_is_ggufs(seed: int) -> None:
    x = blocks_of_any_size(seed, 5, 3, 64)
    d = np.abs(x.reshape(5, 3, 2, 32)).max(axis=-1) / np.float32(127)
    x[np.repeat((d > 0) & (d <= 2.0**-128), 32, axis=-1)] = 0  # gguf divides by too little there
    assert_same(reference.quantise_q8(x), gguf_blocks(x))
    values = gguf.quants.dequantize(gguf.quants.quantize(x, GGMLType.Q8_0), GGMLType.Q8_0)
    np.testing.assert_array_equal(reference.dequantise_q8(*reference.quantise_q8(x)), values)


class Append:
    """One call on drawn rows of several sequences."""

    def __init__(self, seed: int, n_tokens: int, n_kv_heads: int, head_dim: int, n_pairs: int):
        rng = np.random.default_rng(seed)
        places = rng.choice(N_SEQS * MAX_SEQ_LEN, n_tokens, replace=False)
        self.seq, self.pos = (a.astype(np.int32) for a in divmod(places, MAX_SEQ_LEN))
        # Whole numbers for cosine and sine: turned whole numbers are exact, and ties among them.
        self.q = rng.integers(-8, 9, (n_tokens, 2 * n_kv_heads, head_dim)).astype(np.float32)
        self.k = rng.integers(-8, 9, (n_tokens, n_kv_heads, head_dim)).astype(np.float32)
        self.cos, self.sin = (
            rng.integers(-8, 9, (MAX_SEQ_LEN, n_pairs)).astype(np.float32) for _ in "cs"
        )
        self.v = blocks_of_any_size(rng, n_tokens, n_kv_heads, head_dim)
        shape = (N_SEQS, n_kv_heads, MAX_SEQ_LEN, head_dim)
        self.quants = np.full(shape, 99, np.int8)
        self.scales = np.full((*shape[:3], head_dim // 32), 6e4, np.float16)

    def run(self, launcher: Any, stream: Any, layout: str) -> list[Array]:
        """(q, k_quants, k_scales, v_quants, v_scales) afterwards."""
        parts = (self.quants, self.scales, self.quants, self.scales)
        q, *caches = (launcher.upload(a) for a in (self.q, *parts))
        k, v, *rows = (
            launcher.upload(a, read_only=True)
            for a in (self.k, self.v, self.seq, self.pos, self.cos, self.sin)
        )
        rope_append_q8(q, k, v, *caches, *rows, layout, stream=stream)
        return [launcher.read(a) for a in (q, *caches)]

    def appended(self, x: Array) -> tuple[Array, Array]:
        return reference.append_q8(x, self.quants, self.scales, self.seq, self.pos)


@given(
    n_tokens=st.integers(1, 6), n_kv_heads=st.integers(1, 5),
    head_dim=st.sampled_from([32, 64, 96, 128, 256]),
    layout=st.sampled_from(["interleaved", "half"]),
    rotated=st.sampled_from([0.25, 0.7, 1.0]), seed=SEEDS,
)  # fmt: skip
@example(n_tokens=1, n_kv_heads=1, head_dim=32, layout="half", rotated=0.25, seed=0)
def test_rope_append_q8(
    launcher: Any, n_tokens: int, n_kv_heads: int, head_dim: int, layout: str, rotated: float,
    seed: int,
) -> None:  # fmt: skip
    case = Append(seed, n_tokens, n_kv_heads, head_dim, max(1, int(head_dim * rotated) // 2))
    q, *caches = case.run(launcher, launcher.reordered(seed), layout)
    turned = [reference.rope(x, case.pos, case.cos, case.sin, layout) for x in (case.q, case.k)]
    np.testing.assert_array_equal(q, turned[0])
    assert_same((caches[0], caches[1]), case.appended(turned[1]))
    assert_same((caches[2], caches[3]), case.appended(case.v))


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_what_a_scale_cannot_hold(launcher: Any, layout: str) -> None:
    """Finite values stay finite; NaN damages its block, so that it is seen, and no other."""
    case = Append(0, 1, 1, 128, 2)
    case.cos[:], case.sin[:] = 1, 0
    rows = np.ones((4, 32), np.float32)
    rows[0, 7], rows[1, 8:10], rows[2, 9] = -1e30, (np.inf, -np.inf), np.nan
    case.k[0, 0] = case.v[0, 0] = rows.reshape(-1)
    _, *caches = case.run(launcher, launcher, layout)
    at = case.seq[0], 0, case.pos[0]
    for quants, scales in (caches[:2], caches[2:]):
        assert scales[at].tolist()[:2] == [65504, 65504]
        assert np.isnan(scales[at][2])
        values = reference.dequantise_q8(quants[at], scales[at]).reshape(4, 32)
        assert values[0, 7] == -LARGEST
        assert values[1, 8:10].tolist() == [LARGEST, -LARGEST]
        assert np.isnan(values[2]).all()
        np.testing.assert_array_equal(quants[at][96:], 127)
        assert abs(values[3, 0] - 1) < 2**-11


def test_beyond_2_to_31_elements(launcher: Any) -> None:
    """A sparse cache of 2^31 + elements: only the pages that are written exist."""
    if not hasattr(launcher, "emulator"):
        pytest.skip("a card's memory is not sparse")
    shape = (3, 1, 2**24, 64)  # 3.2e9 elements
    k_quants, v_quants = np.zeros(shape, np.int8), np.zeros(shape, np.int8)
    k_scales, v_scales = (np.zeros((*shape[:3], 2), np.float16) for _ in "kv")
    q, k, v = (np.random.default_rng(i).standard_normal((2, 1, 64), np.float32) for i in range(3))
    seq, pos = np.array([2, 1], np.int32), np.array([2**24 - 1, 7], np.int32)
    cos, sin = np.ones((2**24, 1), np.float32), np.zeros((2**24, 1), np.float32)
    caches = k_quants, k_scales, v_quants, v_scales
    rope_append_q8(q, k, v, *caches, seq, pos, cos, sin, "half", stream=launcher)
    for x, quants, scales in ((k, k_quants, k_scales), (v, v_quants, v_scales)):
        assert_same((quants[seq, 0, pos], scales[seq, 0, pos]), reference.quantise_q8(x[:, 0]))


def test_contract(launcher: Any) -> None:
    case = Append(0, 1, 1, 64, 2)
    case.scales = np.zeros((*case.quants.shape[:3], 1), np.float16)
    with pytest.raises(KernelContractError, match=r"k_scales: expected float16\[3, 1, 11, 2\]"):
        case.run(launcher, launcher, "half")
    case.quants = case.quants.astype(np.int16)
    with pytest.raises(KernelContractError, match=r"k_quants: expected int8\["):
        case.run(launcher, launcher, "half")
    cache = np.zeros((1, 1, 4, 80), np.int8), np.zeros((1, 1, 4, 2), np.float16)
    with pytest.raises(KernelContractError, match="heads of whole blocks of 32, got 80"):
        check_q8_cache(cache, cache, (None, 1, None, 80))
