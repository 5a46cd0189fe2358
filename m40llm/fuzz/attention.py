"""One layer's poisoned cache, rows of queries, and how far FP32 may stray from the reference."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m40llm import reference
from m40llm.fuzz.bounds import assert_within, attention_bound

IDLE_SHARE = 0.15  # of drawn rows
POISON = 6e4  # what the cache holds beyond its length: any leak shows
Array = NDArray[Any]


@dataclass
class Case:
    """One layer's poisoned cache and rows of queries to attend with."""

    q: Array
    k: Array
    v: Array
    seq: Array
    pos: Array
    scale: float
    window: int = 0
    softcap: float = 0.0
    q_error: Any = 0.0  # how far a kernel's q may be from this one, where it makes it itself

    @property
    def options(self) -> dict[str, Any]:
        return {"scale": self.scale, "window": self.window, "softcap": self.softcap}

    def uploaded(self, launcher: Any, *, sparse: bool = False) -> tuple[Any, ...]:
        """The arrays on the device; sparse caches are mostly zeros that take no memory."""
        upload = launcher.upload_sparse if sparse else launcher.upload
        caches = tuple(upload(cache, read_only=True) for cache in (self.k, self.v))
        q, seq, pos = (launcher.upload(x, read_only=True) for x in (self.q, self.seq, self.pos))
        return q, *caches, seq, pos

    def expected(self, **changed: Any) -> Array:
        arrays = {"q": self.q, "k": self.k, "v": self.v, **changed}
        return reference.attention(
            arrays["q"], arrays["k"], arrays["v"], self.seq, self.pos, **self.options
        )

    def bound(self) -> Array:
        """Error of FP32 arithmetic, per element."""
        n_heads, n_kv_heads = self.q.shape[1], self.k.shape[1]
        score, off = np.zeros((2, *self.q.shape[:2], 1))
        q_error = np.broadcast_to(self.q_error, self.q.shape)
        for t, (s, last) in enumerate(zip(self.seq, self.pos, strict=True)):
            if last < 0:
                continue
            for head in range(n_heads):
                k = np.abs(self.k[s, head // (n_heads // n_kv_heads), self._first(last) : last + 1])
                score[t, head] = (k.astype(np.float64) @ np.abs(self.q[t, head])).max()
                off[t, head] = (k.astype(np.float64) @ q_error[t, head]).max()
        score, off = (value * abs(self.scale) for value in (score, off))
        n_keys = (self.pos + 1 - [self._first(last) for last in self.pos])[:, None, None]
        magnitude = self.expected(v=np.abs(self.v))
        return attention_bound(score, n_keys, self.q.shape[2], magnitude, off)

    def _first(self, last: int) -> int:
        return max(0, int(last) + 1 - self.window) if self.window else 0

    def check(self, out: Array) -> None:
        assert_within(out, self.expected(), self.bound())

    def quantised(self) -> "Q8Case":
        """The same with both caches rounded to Q8_0."""
        return self.of_blocks(reference.quantise_q8(self.k), reference.quantise_q8(self.v))

    def of_blocks(self, k: tuple[Array, Array], v: tuple[Array, Array]) -> "Q8Case":
        """The same over these (quants, scales)."""
        fields = {**vars(self), "k": reference.dequantise_q8(*k), "v": reference.dequantise_q8(*v)}
        return Q8Case(**fields, blocks=(*k, *v))


@dataclass
class Q8Case(Case):
    """A cache in Q8_0: k and v are what it stands for, exactly; `blocks` what is uploaded.

    blocks   (k_quants, k_scales, v_quants, v_scales)
    """

    blocks: tuple[Array, ...] = ()

    def uploaded(self, launcher: Any, *, sparse: bool = False) -> tuple[Any, ...]:
        upload = launcher.upload_sparse if sparse else launcher.upload
        caches = tuple(upload(part, read_only=True) for part in self.blocks)
        q, seq, pos = (launcher.upload(x, read_only=True) for x in (self.q, self.seq, self.pos))
        return q, *caches, seq, pos


def poisoned_cache(
    rng: np.random.Generator,
    seq_lens: Sequence[int],
    n_kv_heads: int,
    max_seq_len: int,
    head_dim: int,
) -> Array:
    """float16[n_seqs, n_kv_heads, max_seq_len, head_dim], POISON beyond each length."""
    cache = np.full((len(seq_lens), n_kv_heads, max_seq_len, head_dim), POISON, np.float16)
    for s, n in enumerate(seq_lens):
        cache[s, :, :n] = rng.standard_normal((n_kv_heads, n, head_dim))
    return cache
