"""NoisyOps: the reference run with every op's rounding errors drawn at the size of their bounds.

How far FP32 may stray in a whole model has no useful closed bound, but each op's bound is known:
an FP32 sum of n products errs by at most gamma_n * sum |w| |x|, gamma_n = n u / (1 - n u) with
u = 2^-24 (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1). This runs the
model in FP64 and adds, to each op's result, uniform noise within that op's bound. The spread of
a few such runs is what a correct FP32 implementation may show; a wrong index shows a thousand
times more.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from m40llm import reference
from m40llm.device.ops import Cache, RopeTable
from m40llm.fuzz.bounds import UNIT_ROUNDOFF, gamma, gate_bound, softcap_bound
from m40llm.testing.reference_ops import ReferenceOps, values_of

__all__ = ["UNIT_ROUNDOFF", "NoisyOps", "NoisyTables", "gamma"]

Array = NDArray[Any]


class NoisyOps(ReferenceOps):
    """ReferenceOps whose float results carry noise of the size of FP32's rounding bounds."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def _disturb(self, out: Array, bound: Any) -> None:
        out += bound * self._rng.uniform(-1.0, 1.0, out.shape)

    def rms_norm(self, x: Array, weight: Array, eps: float, *, out: Array) -> None:
        super().rms_norm(x, weight, eps, out=out)
        self._disturb(out, gamma(x.shape[-1] + 4) * np.abs(out))

    def matmul(
        self,
        w: Array,
        x: Array,
        *,
        out: Array,
        bias: Array | None = None,
        accumulate: bool = False,
    ) -> None:
        magnitude = np.abs(x) @ np.abs(w).T.astype(np.float64)
        super().matmul(w, x, out=out, bias=bias, accumulate=accumulate)
        self._disturb(out, gamma(w.shape[1]) * magnitude + UNIT_ROUNDOFF * np.abs(out))

    def rope(self, x: Array, pos: Array, table: RopeTable) -> None:
        super().rope(x, pos, table)
        length = np.sqrt((x * x).sum(axis=-1, keepdims=True))
        self._disturb(x, gamma(4) * length)

    def attention(
        self,
        q: Array,
        k_cache: Cache,
        v_cache: Cache,
        seq: Array,
        pos: Array,
        *,
        scale: float,
        window: int,
        softcap: float,
        single_rows: bool,
        out: Array,
    ) -> None:
        how: Any = {"scale": scale, "window": window, "softcap": softcap}
        how["single_rows"] = single_rows
        super().attention(q, k_cache, v_cache, seq, pos, out=out, **how)
        head_dim, n = q.shape[2], int(pos.max()) + 1
        largest_k, largest_v = (
            np.abs(values_of(cache)[seq[0], :, :n]).max() for cache in (k_cache, v_cache)
        )
        n_roundings = head_dim + 4 + (9 if softcap else 0)  # those of softcap_bound
        score_error = gamma(n_roundings) * scale * np.abs(q).sum(axis=-1).max() * largest_k
        self._disturb(out, (2 * score_error + gamma(n + 8)) * largest_v)

    def swiglu(self, gate: Array, up: Array, *, out: Array) -> None:
        super().swiglu(gate, up, out=out)
        self._disturb(out, gamma(8) * np.abs(out))

    def geglu(self, gate: Array, up: Array, *, out: Array) -> None:
        bound = gate_bound("geglu", gate, up, reference.geglu(gate, up))
        super().geglu(gate, up, out=out)
        self._disturb(out, bound)

    def scale(self, x: Array, factor: float) -> None:
        super().scale(x, factor)
        self._disturb(x, UNIT_ROUNDOFF * np.abs(x))

    def softcap(self, x: Array, cap: float) -> None:
        super().softcap(x, cap)
        self._disturb(x, softcap_bound(x))

    def add_rows(self, x: Array, rows: Array, shares: Array, y: Array) -> None:
        bound = np.zeros_like(x)
        bound[rows] = UNIT_ROUNDOFF * (np.abs(x[rows]) + 3 * np.abs(shares[:, None] * y))
        super().add_rows(x, rows, shares, y)
        self._disturb(x, bound)

    def add_scaled(self, x: Array, y: Array, factor: float) -> None:
        bound = UNIT_ROUNDOFF * (np.abs(x) + 2 * np.abs(factor * y))
        super().add_scaled(x, y, factor)
        self._disturb(x, bound)


class NoisyTables(NoisyOps):
    """FP64 but for the cosines and sines, whose rounding to FP32 is what the noise of rope is."""

    rms_norm = ReferenceOps.rms_norm
    matmul = ReferenceOps.matmul
    attention = ReferenceOps.attention
    swiglu = ReferenceOps.swiglu
    softcap = ReferenceOps.softcap
