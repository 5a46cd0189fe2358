"""The small ops of a layer on the CPU: norm, rotation, gate. Numba, since NumPy would spend more
time entering each of its calls than computing (a decode step runs some 400 of these).
"""

from typing import Any

import numpy as np
from numba import njit, prange

_JIT: dict[str, Any] = {
    "cache": True,
    "boundscheck": False,
    "error_model": "numpy",
    "nogil": True,
    "fastmath": {"reassoc", "contract", "nsz", "arcp"},  # not nnan, ninf: NaN must stay visible
}


@njit(**_JIT)
def rms_norm(x, weight, eps, out):
    """out[t, c] = weight[c] * x[t, c] / sqrt(mean_c(x[t]^2) + eps); out may be x."""
    n_embd = x.shape[1]
    for t in range(x.shape[0]):
        sum_sq = np.float32(0)
        for c in range(n_embd):
            sum_sq += x[t, c] * x[t, c]
        scale = np.float32(1) / np.sqrt(sum_sq / np.float32(n_embd) + np.float32(eps))
        for c in range(n_embd):
            out[t, c] = x[t, c] * scale * weight[c]


@njit(**_JIT)
def rotate(x, pos, cos, sin, stride, partner):
    """RoPE in place: pair d of a head is (x[d * stride], x[d * stride + partner]).

    x float32[n_tokens, n_heads, head_dim]; cos, sin float32[max_seq_len, rope_dim / 2]
    """
    for t in range(x.shape[0]):
        p = pos[t]
        for head in range(x.shape[1]):
            for d in range(cos.shape[1]):
                a, b = x[t, head, d * stride], x[t, head, d * stride + partner]
                x[t, head, d * stride] = a * cos[p, d] - b * sin[p, d]
                x[t, head, d * stride + partner] = b * cos[p, d] + a * sin[p, d]


@njit(**_JIT)
def append(k, v, k_cache, v_cache, seq, pos):
    """k_cache[seq[t], h, pos[t]] = k[t, h], and v likewise; caches [n_seqs, n_kv_heads, len, d]."""
    for t in range(k.shape[0]):
        for head in range(k.shape[1]):
            for d in range(k.shape[2]):
                k_cache[seq[t], head, pos[t], d] = k[t, head, d]
                v_cache[seq[t], head, pos[t], d] = v[t, head, d]


@njit(parallel=True, **_JIT)
def swiglu(gate, up, out):
    """out = gate / (1 + exp(-gate)) * up; out may be gate."""
    for t in prange(gate.shape[0]):
        for c in range(gate.shape[1]):
            g = gate[t, c]
            out[t, c] = g / (np.float32(1) + np.exp(-g)) * up[t, c]


@njit(parallel=True, **_JIT)
def geglu(gate, up, out):
    """out = gelu_tanh(gate) * up; out may be gate. See kernels/swiglu.py for its form."""
    for t in prange(gate.shape[0]):
        for c in range(gate.shape[1]):
            g = gate[t, c]
            exponent = np.float32(-1.5957691216057308) * (g + np.float32(0.044715) * g * g * g)
            out[t, c] = g / (np.float32(1) + np.exp(exponent)) * up[t, c]
