"""What the benchmarks of both attention kernels share: models' head counts, caches, and checks.

The reference takes seconds for a long context, so it is asked for some rows and K/V heads, first
and last among them. Of all others it must hold that a mean of values is no larger than the values.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from bounds import share_of
from cases import Arrays
from numpy.typing import NDArray

from m40llm import reference
from m40llm.fuzz.bounds import attention_bound, gamma

N_CHECKED = 6
N_DRAWN = 999_983  # numbers of a cache, which then repeat


@dataclass(frozen=True)
class Heads:
    """A model's attention."""

    model: str
    n_heads: int
    n_kv_heads: int
    head_dim: int
    softcap: float = 0.0  # which torch's attention knows nothing of: the rival runs without

    @property
    def scale(self) -> float:
        return float(1 / np.sqrt(self.head_dim))


TINY = Heads("tiny", 4, 2, 32)
LLAMA_1B = Heads("1B", 32, 8, 64)
LLAMA_8B = Heads("8B", 32, 8, 128)
GEMMA2_9B = Heads("Gemma 2 9B", 16, 8, 256, softcap=50.0)


def drawn(heads: Heads, seq: NDArray[Any], pos: NDArray[Any], n_seqs: int) -> Arrays:
    """q, both caches, just as long as they must be, seq and pos."""
    rng = np.random.default_rng(len(seq))
    shape = (n_seqs, heads.n_kv_heads, int(pos.max()) + 1, heads.head_dim)
    # Drawing normal numbers takes longer than all the rest: a prime number of them, repeated.
    few = rng.standard_normal(N_DRAWN).astype(np.float16)
    k, v = (np.resize(np.roll(few, at), shape) for at in (0, 500_000))
    q = rng.standard_normal((len(seq), heads.n_heads, heads.head_dim), np.float32)
    return {"q": q, "k": k, "v": v, "seq": seq.astype(np.int32), "pos": pos.astype(np.int32)}


def in_blocks(made: Arrays) -> Arrays:
    """The same with drawn caches in Q8_0: k_quants, k_scales, ... in place of k and v."""
    rng, shape = np.random.default_rng(1), made["k"].shape
    quants = rng.integers(-127, 128, N_DRAWN).astype(np.int8)
    scales = (np.abs(rng.standard_normal(N_DRAWN)) / 64).astype(np.float16)
    parts = {name: values for name, values in made.items() if name not in ("k", "v")}
    for name, at in (("k", 0), ("v", 500_000)):
        parts[f"{name}_quants"] = np.resize(np.roll(quants, at), shape)
        parts[f"{name}_scales"] = np.resize(np.roll(scales, at), (*shape[:3], shape[3] // 32))
    return parts


def cache_names(is_q8: bool) -> tuple[str, ...]:
    """As a kernel takes them."""
    return ("k_quants", "k_scales", "v_quants", "v_scales") if is_q8 else ("k", "v")


def _values(a: Arrays, name: str, seq: int, kv_head: int, n_keys: int) -> NDArray[Any]:
    """The first keys, or values, of a head   [n_keys, head_dim]"""
    if name in a:
        return np.asarray(a[name][seq, kv_head, :n_keys])
    parts = (a[f"{name}_{part}"][seq, kv_head, :n_keys] for part in ("quants", "scales"))
    return reference.dequantise_q8(*parts)


def _largest_value(a: Arrays) -> float:
    if "v" in a:
        return float(np.abs(a["v"].reshape(-1)[:N_DRAWN]).max())
    return 127 * float(a["v_scales"].reshape(-1)[:N_DRAWN].max())


def check(heads: Heads, a: Arrays, out: NDArray[Any]) -> float:
    """The largest error of the rows looked at as a share of its bound; inf if a value is wild."""
    group_size = heads.n_heads // heads.n_kv_heads
    rng, n_tokens = np.random.default_rng(0), len(a["seq"])
    tokens = [0, n_tokens - 1, *rng.integers(0, n_tokens, N_CHECKED - 2)]
    worst = 0.0
    for token in tokens:
        kv_head = int(rng.integers(heads.n_kv_heads))
        mine = slice(kv_head * group_size, (kv_head + 1) * group_size)
        n_keys, seq = int(a["pos"][token]) + 1, a["seq"][token]
        q = a["q"][token : token + 1, mine]
        k, v = (_values(a, name, seq, kv_head, n_keys) for name in "kv")
        rows = np.zeros(1, np.int32), np.array([n_keys - 1], np.int32)
        expected, magnitude = (
            reference.attention(
                q, k[None, None], values[None, None], *rows, heads.scale, softcap=heads.softcap
            )[0]
            for values in (v, np.abs(v))
        )
        largest_score = (np.abs(k.astype(np.float64)) @ np.abs(q[0]).T).max(axis=0)[:, None]
        score = abs(heads.scale) * largest_score
        bound = attention_bound(score, n_keys, heads.head_dim, magnitude)
        worst = max(worst, share_of(out[token, mine], expected, bound))
    n_keys = int(a["pos"].max()) + 1
    largest = _largest_value(a) * (1 + gamma(7 * n_keys + 64) * 2)
    return worst if (np.abs(out) <= largest).all() else float("inf")
