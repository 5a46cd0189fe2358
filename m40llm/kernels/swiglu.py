"""Gated activations: out = silu(gate) * up (SwiGLU), out = gelu_tanh(gate) * up (GeGLU).

silu(g)      = g / (1 + exp(-g))
gelu_tanh(g) = g / (1 + exp(-2 u)), u = sqrt(2 / pi) * (g + 0.044715 g^3): the same as
               g / 2 * (1 + tanh u), without its cancellation where g is far below 0

gate, up, out   float32[n_tokens, n_ff]; out may be gate or up; 16-byte aligned
grid            a thread for 4 elements; the last n % 4 one by one
bytes           12 * n_tokens * n_ff   (bandwidth-bound)
GM200           at most 32 registers: 2048 threads an SM
"""

import math
from functools import cache
from typing import Any, Final

import numpy as np
from numba import cuda, float32, int64

from m40llm.kernels.contract import Kernel, Launcher, ceil_div, check_array
from m40llm.kernels.intrinsics import load_float4, store_float4

N_THREADS: Final = 256
PER_THREAD: Final = 4
MAX_REGISTERS: Final = 32
GELU_LINEAR: Final = -2 * math.sqrt(2 / math.pi)
GELU_CUBIC: Final = 0.044715


@cuda.jit(device=True)
def silu(g: Any) -> Any:
    """g / (1 + exp(-g)); -0 below -88.7, where exp(-g) passes the largest float32."""
    return g / (float32(1.0) + math.exp(-g))


@cuda.jit(device=True)
def gelu_tanh(g: Any) -> Any:
    """GELU in its tanh form (arXiv 1606.08415)."""
    exponent = float32(GELU_LINEAR) * (g + float32(GELU_CUBIC) * g * g * g)
    return g / (float32(1.0) + math.exp(exponent))


_ACTIVATIONS: Final = {"silu": silu, "gelu_tanh": gelu_tanh}


@cache
def _compile(activation_name: str) -> Kernel:
    activation = _ACTIVATIONS[activation_name]

    def gated_activation(gate: Any, up: Any, out: Any) -> None:
        first = int64(cuda.grid(1)) * PER_THREAD
        n_ff = gate.shape[1]
        if first + PER_THREAD <= gate.size:
            g0, g1, g2, g3 = load_float4(gate, first)
            u0, u1, u2, u3 = load_float4(up, first)
            y0, y1 = activation(g0) * u0, activation(g1) * u1
            y2, y3 = activation(g2) * u2, activation(g3) * u3
            store_float4(out, first, y0, y1, y2, y3)
        else:
            for element in range(first, gate.size):
                token, c = element // n_ff, element % n_ff
                out[token, c] = activation(gate[token, c]) * up[token, c]

    return Kernel(gated_activation, registers=MAX_REGISTERS)


def swiglu(gate: Any, up: Any, out: Any, *, stream: Launcher) -> None:
    """out = silu(gate) * up   [n_tokens, n_ff]"""
    _launch("silu", gate, up, out, stream)


def geglu(gate: Any, up: Any, out: Any, *, stream: Launcher) -> None:
    """out = gelu_tanh(gate) * up   [n_tokens, n_ff]"""
    _launch("gelu_tanh", gate, up, out, stream)


def _launch(activation_name: str, gate: Any, up: Any, out: Any, stream: Launcher) -> None:
    check_array("gate", gate, np.float32, (None, None))
    check_array("up", up, np.float32, gate.shape)
    check_array("out", out, np.float32, gate.shape)
    n = gate.shape[0] * gate.shape[1]
    if n:
        grid = ceil_div(n, N_THREADS * PER_THREAD)
        stream.launch(_compile(activation_name), grid, N_THREADS, gate, up, out)
