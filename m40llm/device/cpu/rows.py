"""One packed row of a weight matrix: its dot product with x, or its weights as float32.

Both are compiled around the decoder of each format (formats.py). Which one a matrix needs is a
number at run time, so that a single compiled product serves every format and mix of formats.
"""

from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as GGMLType
from numba import njit

from m40llm.device.cpu.formats import FORMATS, UNIT, CpuFormat
from m40llm.device.cpu.simd import LANES, add, fmuladd, lane_sum, load_f32, splat, store_f32

COLS_AT_ONCE = 1024  # of unpacked rows: whole blocks of every format
JIT: dict[str, Any] = {"boundscheck": False, "error_model": "numpy", "nogil": True}


def _row_functions(layout: CpuFormat) -> tuple[Any, Any]:
    """(dot, unpack) of n_units * 32 weights from byte `at` of `memory` on."""
    n_subs, block_bytes, decode = layout.n_weights // UNIT, layout.n_bytes, layout.decode

    @njit(**JIT)
    def dot(memory, at, n_units, x):
        low_sum, high_sum = splat(0.0), splat(0.0)
        for block in range(n_units // n_subs):
            for s in range(n_subs):
                low, high = decode(memory, at + block * block_bytes, s)
                c = (block * n_subs + s) * UNIT
                low_sum = fmuladd(low, load_f32(x, c), low_sum)
                high_sum = fmuladd(high, load_f32(x, c + LANES), high_sum)
        return lane_sum(add(low_sum, high_sum))

    @njit(**JIT)
    def unpack(memory, at, n_units, out, first):
        for block in range(n_units // n_subs):
            for s in range(n_subs):
                low, high = decode(memory, at + block * block_bytes, s)
                c = first + (block * n_subs + s) * UNIT
                store_f32(out, c, low)
                store_f32(out, c + LANES, high)

    return dot, unpack


KINDS = {ggml_type: kind for kind, ggml_type in enumerate(FORMATS)}
_DOT, _UNPACK = zip(*(_row_functions(layout) for layout in FORMATS.values()), strict=True)

# Numba resolves names, not dictionaries: one a format, in the order of FORMATS.
_f32, _f16, _bf16, _q4_0, _q4_1, _q5_0, _q5_1, _q8_0, _q4_k, _q5_k, _q6_k = _DOT
_to_f32, _to_f16, _to_bf16, _to_q4_0, _to_q4_1, _to_q5_0 = _UNPACK[:6]
_to_q5_1, _to_q8_0, _to_q4_k, _to_q5_k, _to_q6_k = _UNPACK[6:]
F32, F16, Q4_0, Q4_1 = (KINDS[GGMLType[name]] for name in ("F32", "F16", "Q4_0", "Q4_1"))
Q5_0, Q5_1, Q8_0 = (KINDS[GGMLType[name]] for name in ("Q5_0", "Q5_1", "Q8_0"))
Q4_K, Q5_K, Q6_K = (KINDS[GGMLType[name]] for name in ("Q4_K", "Q5_K", "Q6_K"))


@njit(**JIT)
def dot_row(kind, memory, at, n_units, x):
    """sum_c W[c] x[c] over the n_units * 32 packed weights that begin at byte `at`."""
    if kind == Q4_1:
        return _q4_1(memory, at, n_units, x)
    if kind == Q8_0:
        return _q8_0(memory, at, n_units, x)
    if kind == Q4_K:
        return _q4_k(memory, at, n_units, x)
    if kind == Q6_K:
        return _q6_k(memory, at, n_units, x)
    if kind == Q4_0:
        return _q4_0(memory, at, n_units, x)
    if kind == Q5_0:
        return _q5_0(memory, at, n_units, x)
    if kind == Q5_1:
        return _q5_1(memory, at, n_units, x)
    if kind == Q5_K:
        return _q5_k(memory, at, n_units, x)
    if kind == F16:
        return _f16(memory, at, n_units, x)
    if kind == F32:
        return _f32(memory, at, n_units, x)
    return _bf16(memory, at, n_units, x)


@njit(**JIT)
def unpack_row(kind, memory, at, n_units, out, first):
    """out[first : first + n_units * 32] = the packed weights that begin at byte `at`."""
    if kind == Q4_1:
        _to_q4_1(memory, at, n_units, out, first)
    elif kind == Q8_0:
        _to_q8_0(memory, at, n_units, out, first)
    elif kind == Q4_K:
        _to_q4_k(memory, at, n_units, out, first)
    elif kind == Q6_K:
        _to_q6_k(memory, at, n_units, out, first)
    elif kind == Q4_0:
        _to_q4_0(memory, at, n_units, out, first)
    elif kind == Q5_0:
        _to_q5_0(memory, at, n_units, out, first)
    elif kind == Q5_1:
        _to_q5_1(memory, at, n_units, out, first)
    elif kind == Q5_K:
        _to_q5_k(memory, at, n_units, out, first)
    elif kind == F16:
        _to_f16(memory, at, n_units, out, first)
    elif kind == F32:
        _to_f32(memory, at, n_units, out, first)
    else:
        _to_bf16(memory, at, n_units, out, first)


@njit(**JIT)
def unpack_rows(kind, memory, row_bytes, at, n_real, n_rows, n_units, out):
    """out[r, :] = the n_units * 32 weights at byte at + r row_bytes; rows from n_real on are zero.

    out  float32[n_rows * n_units * 32 or more], flat
    """
    n_k = n_units * UNIT
    for r in range(n_rows):
        if r < n_real:
            unpack_row(kind, memory, at + r * row_bytes, n_units, out, r * n_k)
        else:
            out[r * n_k : (r + 1) * n_k] = np.float32(0)
