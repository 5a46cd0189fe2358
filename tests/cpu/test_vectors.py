"""Up to MAX_VECTORS rows at once: each has, bit for bit, what it has alone."""

import numpy as np
import pytest
from gguf import GGMLQuantizationType as GGMLType
from hypothesis import example, given
from hypothesis import strategies as st

from m40llm.device.cpu import q8_cache
from m40llm.device.cpu.attention import attention
from m40llm.device.cpu.formats import FORMATS
from m40llm.device.cpu.matmul import DenseMatrix, PackedMatrix, matmul
from m40llm.device.cpu.ops import CpuOps
from m40llm.device.cpu.vectors import MAX_VECTORS, ROWS_AT_ONCE
from m40llm.device.ops import Q8Cache
from m40llm.gguf.blocks import row_bytes
from m40llm.testing.random_blocks import random_tensor

SEEDS = st.integers(0, 2**32 - 1)
N_TOKENS = st.integers(2, MAX_VECTORS)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Of equal values: -0 is not 0."""
    return bool((a.view(np.uint32) == b.view(np.uint32)).all())


def assert_rows_stand_alone(
    w: PackedMatrix | DenseMatrix, n_tokens: int, accumulate: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n_tokens, w.n_cols), np.float32)
    before = rng.standard_normal((n_tokens, w.n_rows), np.float32)
    together, alone = before.copy(), before.copy()
    matmul(w, x, together, accumulate=accumulate)
    for t in range(n_tokens):
        matmul(w, x[t : t + 1], alone[t : t + 1], accumulate=accumulate)
    assert same_bits(together, alone)


@pytest.mark.parametrize("ggml_type", FORMATS, ids=lambda t: t.name)
@given(
    n_tokens=N_TOKENS,
    n_rows=st.integers(1, 3 * ROWS_AT_ONCE),
    n_units=st.integers(1, 80),
    accumulate=st.booleans(),
    seed=SEEDS,
)
@example(n_tokens=2, n_rows=1, n_units=1, accumulate=False, seed=0)
@example(n_tokens=3, n_rows=ROWS_AT_ONCE, n_units=32, accumulate=True, seed=1)
@example(n_tokens=MAX_VECTORS, n_rows=ROWS_AT_ONCE + 1, n_units=72, accumulate=False, seed=2)
def test_products(
    ggml_type: GGMLType, n_tokens: int, n_rows: int, n_units: int, accumulate: bool, seed: int
) -> None:
    n_subs = FORMATS[ggml_type].n_weights // 32
    n_cols = 32 * n_subs * -(-n_units // n_subs)
    rng = np.random.default_rng(seed)
    data = np.ascontiguousarray(random_tensor(rng, (n_rows, n_cols), 1.0, ggml_type))
    memory = data.view(np.uint8).reshape(-1)
    assert memory.size == n_rows * row_bytes(ggml_type, n_cols)
    memory.flags.writeable = False  # as a mapped file is
    w = PackedMatrix(ggml_type, n_rows, n_cols, memory)
    assert_rows_stand_alone(w, n_tokens, accumulate, seed)


@given(
    n_tokens=N_TOKENS,
    n_rows=st.integers(1, 90),
    n_cols=st.integers(1, 400),
    accumulate=st.booleans(),
    seed=SEEDS,
)
def test_products_of_widths_that_no_vector_divides(
    n_tokens: int, n_rows: int, n_cols: int, accumulate: bool, seed: int
) -> None:
    weights = np.random.default_rng(seed).standard_normal((n_rows, n_cols), np.float32)
    assert_rows_stand_alone(DenseMatrix(weights), n_tokens, accumulate, seed)


@pytest.mark.parametrize("kv_type", ["f32", "q8_0"])
@given(
    runs=st.lists(st.integers(1, MAX_VECTORS), min_size=1, max_size=MAX_VECTORS),
    head_dim=st.sampled_from([32, 64, 96]),
    window=st.sampled_from([0, 7]),
    softcap=st.sampled_from([0.0, 5.0]),
    seed=SEEDS,
)
@example(runs=[1] * MAX_VECTORS, head_dim=64, window=0, softcap=0.0, seed=0)
@example(runs=[MAX_VECTORS], head_dim=64, window=7, softcap=5.0, seed=1)
def test_attention(
    kv_type: str, runs: list[int], head_dim: int, window: int, softcap: float, seed: int
) -> None:
    """Sequences with up to MAX_VECTORS rows each, in any number."""
    rng = np.random.default_rng(seed)
    seq = np.repeat(np.arange(len(runs), dtype=np.int32), runs)
    pos = np.concatenate([rng.integers(0, 40) + np.arange(n) for n in runs]).astype(np.int32)
    shape = (len(runs), 2, 64, head_dim)
    if kv_type == "q8_0":
        attend, caches = q8_cache.attention, tuple(drawn_q8(rng, shape) for _ in "kv")
    else:
        attend, caches = attention, tuple(rng.standard_normal(shape, np.float32) for _ in "kv")
    q = rng.normal(0, 3, (len(seq), 4, head_dim)).astype(np.float32)
    together, alone = np.full_like(q, np.nan), np.full_like(q, np.nan)
    how = {"window": window, "softcap": softcap}
    attend(q, *caches, seq, pos, 0.2, together, **how)
    for t in range(len(seq)):
        row = slice(t, t + 1)
        attend(q[row], *caches, seq[row], pos[row], 0.2, alone[row], **how)
    assert same_bits(together, alone)


def drawn_q8(rng: np.random.Generator, shape: tuple[int, ...]) -> Q8Cache:
    quants = rng.integers(-127, 128, shape).astype(np.int8)
    scales = rng.uniform(0, 0.02, (*shape[:-1], shape[-1] // 32)).astype(np.float16)
    return Q8Cache(quants, scales)


def test_a_long_run_leaves_the_others_alone() -> None:
    """A prefill's panels have other bits; the single rows of its neighbours keep theirs."""
    rng = np.random.default_rng(5)
    runs = [1, MAX_VECTORS + 1, 2, 1]
    seq = np.repeat(np.arange(4, dtype=np.int32), runs)
    pos = np.concatenate([np.arange(n) for n in runs]).astype(np.int32)
    k, v = (rng.standard_normal((4, 1, 20, 32), np.float32) for _ in "kv")
    q = rng.standard_normal((len(seq), 1, 32), np.float32)
    together, alone = np.full_like(q, np.nan), np.full_like(q, np.nan)
    attention(q, k, v, seq, pos, 1.0, together)
    for t in range(len(seq)):
        row = slice(t, t + 1)
        attention(q[row], k, v, seq[row], pos[row], 1.0, alone[row])
    of_others = seq != 1
    assert same_bits(together[of_others], alone[of_others])
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-5)


@given(n=N_TOKENS, width=st.integers(1, 300), seed=SEEDS)
def test_small_ops(n: int, width: int, seed: int) -> None:
    ops, rng = CpuOps(), np.random.default_rng(seed)
    x, y = (rng.normal(0, 3, (n, width)).astype(np.float32) for _ in "xy")
    weight = rng.standard_normal(width).astype(np.float32)

    def results(rows: slice) -> list[np.ndarray]:
        normed, gated, glued, capped = (x[rows].copy() for _ in range(4))
        ops.rms_norm(normed, weight, 1e-5, out=normed)
        ops.swiglu(gated, y[rows], out=gated)
        ops.geglu(glued, y[rows], out=glued)
        ops.softcap(capped, 2.5)
        return [normed, gated, glued, capped]

    together = results(slice(0, n))
    for t in range(n):
        for whole, one in zip(together, results(slice(t, t + 1)), strict=True):
            assert same_bits(whole[t : t + 1], one)


@given(n=N_TOKENS, n_experts=st.sampled_from([8, 60, 128]), normalised=st.booleans(), seed=SEEDS)
def test_choice_of_experts(n: int, n_experts: int, normalised: bool, seed: int) -> None:
    ops, n_used = CpuOps(), 4
    logits = np.random.default_rng(seed).normal(0, 3, (n, n_experts)).astype(np.float32)
    how = {"scale": 1.0, "is_normalised": normalised}
    together, alone = (
        (np.empty(n * n_used, np.int32), np.empty(n * n_used, np.float32)) for _ in range(2)
    )
    ops.choose_experts(logits, **how, ids=together[0], shares=together[1])
    for t in range(n):
        ids, shares = (a[t * n_used : (t + 1) * n_used] for a in alone)
        ops.choose_experts(logits[t : t + 1], **how, ids=ids, shares=shares)
    for whole, one in zip(together, alone, strict=True):
        assert same_bits(whole, one)
