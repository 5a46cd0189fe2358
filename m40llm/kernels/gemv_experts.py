"""Matrix x vector with the experts that each token was given: ids come from the device's memory.

Slot i = token * n_used + k is the k-th expert of a token, e = ids[i]:

gemv_experts         out[i, r] = sum_c W[e][r, c] * x[t, c]
gemv_experts_swiglu  out[i, r] = silu(gate) * up, gate = sum_c G[e][r, c] * x[t, c], up the same
                     of U[e]

W     Planes[n_experts * n_out, n_cols]      the experts above one another, F32, F16 or quantised
G, U  one Planes[2 * n_experts * n_out, n_cols]: all gates, below them all ups
x     float32[n_x, n_cols]         n_x divides n_slots: t = i * n_x / n_slots, so that x has a row
                                   a token, or one a slot, as what gate and up made of it
ids   int32[n_slots]               n_slots <= 65,535; from 0 to n_experts - 1, which nobody checks
out   float32[n_slots, n_out]      aliases nothing

grid     (ceil(n_out / (N_WARPS * results a warp)), slots), blocks of 256 threads; rows a warp as
         in gemv, by the rows of all slots together
bytes    n_slots experts, one in two slots counted twice; + 4 * n_cols for every block, from the L2
         (bandwidth-bound)
sm_52    registers as in gemv of one token. How a warp multiplies its rows: warp_rows.py.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
from gguf import GGMLQuantizationType as GGMLType
from numba import cuda, float32, int64

from m40llm.errors import KernelContractError
from m40llm.kernels.contract import Kernel, Launcher, ceil_div, check_array
from m40llm.kernels.gemv import rows_a_warp
from m40llm.kernels.planes import Planes, check_planes
from m40llm.kernels.staging import N_THREADS, N_WARPS, StagedShape
from m40llm.kernels.warp_rows import finish_rows, multiply_rows

MAX_SLOTS: Final = 65535  # of a grid's second dimension


@dataclass(frozen=True)
class Form:
    """What is fixed when the kernel is compiled: n_rows a warp, x_slots that share a row of x."""

    type: GGMLType
    n_rows: int
    chunk_cols: int
    x_slots: int
    swiglu: bool

    @property
    def registers(self) -> int:
        """As gemv's of one token."""
        return {1: 64, 2: 80, 4: 128}[self.n_rows]


@cache
def _compile(form: Form) -> Kernel:
    """The kernel of a form."""
    n_rows, x_slots = form.n_rows, form.x_slots
    multiply = multiply_rows(form.type, 1, n_rows, form.chunk_cols)
    finish = finish_rows(form.type, 1, n_rows, form.swiglu, False, False)
    n_results = n_rows // 2 if form.swiglu else n_rows

    def gemv_experts(quants: Any, highs: Any, scales: Any, x: Any, ids: Any, out: Any) -> None:
        acc = cuda.local.array(n_rows, float32)
        rows = cuda.local.array(n_rows, int64)
        slot, n_out = cuda.blockIdx.y, out.shape[1]
        expert = ids[slot]
        first_row = (cuda.blockIdx.x * N_WARPS + (cuda.threadIdx.x >> 5)) * n_results
        for r in range(n_rows):
            row = min(int64(first_row + r % n_results), n_out - 1)  # beyond: computed, not stored
            below = quants.shape[0] // 2 if r >= n_results else 0
            rows[r] = expert * n_out + row + below
        multiply(quants, highs, scales, rows, x, int64(slot // x_slots) * x.shape[1], acc)
        finish(acc, first_row, slot, out, out)

    return Kernel(gemv_experts, registers=form.registers)


def gemv_experts(
    w: Planes, x: Any, ids: Any, out: Any, *, stream: Launcher, warp_rows: int | None = None
) -> None:
    """out[i] = W[ids[i]] x of slot i; warp_rows 1, 2 or 4 (None: by size)."""
    _launch(w, x, ids, out, stream, warp_rows, swiglu=False)


def gemv_experts_swiglu(
    w: Planes, x: Any, ids: Any, out: Any, *, stream: Launcher, warp_rows: int | None = None
) -> None:
    """out[i] = silu(G[ids[i]] x) * (U[ids[i]] x); all G above all U; warp_rows 2 or 4."""
    _launch(w, x, ids, out, stream, warp_rows, swiglu=True)


def _launch(
    w: Planes, x: Any, ids: Any, out: Any, stream: Launcher, warp_rows: int | None, *, swiglu: bool
) -> None:
    check_planes(w)
    check_array("ids", ids, np.int32, (None,))
    n_slots = int(ids.shape[0])
    check_array("x", x, np.float32, (None, w.n_cols))
    n_x = int(x.shape[0])
    if n_slots > MAX_SLOTS:
        raise KernelContractError(f"ids: expected at most {MAX_SLOTS} slots, got {n_slots}")
    if not n_x or n_slots % n_x:
        raise KernelContractError(f"x: expected a divisor of the {n_slots} slots, got {n_x} rows")
    check_array("out", out, np.float32, (n_slots, None))
    n_above = out.shape[1] * (2 if swiglu else 1)  # rows of W that an expert has
    if not n_above or w.n_rows % n_above:
        raise KernelContractError(
            f"w: expected the {n_above} rows of each expert above one another, got {w.n_rows}"
        )
    if n_slots:
        shape = n_slots, n_x, n_above, w.n_cols
        kernel, grid = _planned(w.type, *shape, stream.n_sms, warp_rows, swiglu)
        highs, scales = (w.quants if plane is None else plane for plane in (w.highs, w.scales))
        stream.launch(kernel, grid, N_THREADS, w.quants, highs, scales, x, ids, out)


@cache
def _planned(
    type: GGMLType, n_slots: int, n_x: int, n_rows: int, n_cols: int, n_sms: int,
    warp_rows: int | None, swiglu: bool,
) -> tuple[Kernel, tuple[int, int]]:  # fmt: skip
    """(kernel, grid) for n_rows of W an expert, remembered: every layer asks at every token."""
    a_warp = warp_rows or max(rows_a_warp(n_rows * n_slots, 1, n_sms), 2 if swiglu else 1)
    chunk_cols = StagedShape(type, 1, n_cols).chunk_cols
    form = Form(type, a_warp, chunk_cols, n_slots // n_x, swiglu)
    return _compile(form), (ceil_div(n_rows, N_WARPS * a_warp), n_slots)
