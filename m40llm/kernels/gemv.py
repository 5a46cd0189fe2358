"""Matrix x vector, for 1 to 8 vectors at once: the weights are read once for all of them.

gemv         out[t, r] = sum_c W[r, c] * x[t, c]  (+ bias[r]) (+ out[t, r] as it was)
gemv_swiglu  out[t, r] = silu(gate) * up, gate = sum_c W[r, c] * x[t, c], up the same of row
             n_out + r; W is gate and up stacked (their Planes, one above the other)

W      Planes[n_rows, n_cols]        F32, F16 or quantised, in any number of rows
x      float32[n_tokens, n_cols]     1 <= n_tokens <= 8; n_cols in multiples of the type's block,
                                     of 8 for F16, of 4 for F32
bias   float32[n_rows]
out    float32[n_tokens, n_rows]     gemv_swiglu: [n_tokens, n_rows / 2]; aliases nothing

grid     ceil(n_rows / (N_WARPS * rows a warp)) blocks of 256 threads; a warp has 4 rows, 2, or 1,
         as few as it takes to fill the card's SMs; more than 2 tokens: at most 2
bytes    the planes once, + 4 * n_tokens * n_cols for every block, from the L2 (bandwidth-bound)
sm_52    registers (caps: Form.registers) and instructions of the inner loop, for one token:

               rows a warp    F32  F16  Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q4_K Q5_K Q6_K
               1: registers    53   43    42   42   46   46   46   43   47   53
               4: registers    68   64    80   80  103  100   80   96  113  104
               4: a weight    6.6  3.1   2.7  2.6  3.7  3.7  3.4  3.1  4.2  4.5

               rows a warp   Q2_K Q3_K IQ4_NL IQ4_XS MXFP4
               1: registers    48   52     40     40    43
               4: registers    80  109     85     85    85
               4: a weight    3.6  5.0    3.9    4.3   3.5

         4 rows: 16 or 24 warps on an SM (25 %, 38 %; dense 38 %, 50 %), each with 2 KiB under way,
         where 288 GB/s need 6 KiB an SM. 8 tokens, 2 rows: Q4_0 11.9 a weight, 8 of them FMAs. A
         lane of a GM200 (3,072 at 1.1 GHz) has 6.6 instructions for a weight of Q4_0, 9.6 for one
         of Q6_K, 23 for F16, but 3.9 for one of Q2_K and 5.1 for one of Q3_K, before they and not
         the memory set the pace.

How a warp multiplies its rows: warp_rows.py.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
from gguf import GGMLQuantizationType as GGMLType
from numba import cuda, float32, int64

from m40llm.errors import KernelContractError
from m40llm.kernels.contract import Kernel, Launcher, ceil_div, check_array
from m40llm.kernels.planes import Planes, check_planes
from m40llm.kernels.staging import N_THREADS, N_WARPS, StagedShape
from m40llm.kernels.warp_rows import finish_rows, multiply_rows

MAX_TOKENS: Final = 8
WARPS_AN_SM: Final = 16  # that a launch should give before a warp takes more rows


def rows_a_warp(n_rows: int, n_tokens: int, n_sms: int) -> int:
    """4 rows share a load of x; fewer where the matrix would leave the card idle."""
    most = 4 if n_tokens <= 2 else 2
    while most > 1 and n_rows < most * WARPS_AN_SM * n_sms:
        most //= 2
    return most


@dataclass(frozen=True)
class Form:
    """What is fixed when the kernel is compiled: n_rows of W a warp, chunk_cols of x at a time."""

    type: GGMLType
    n_tokens: int
    n_rows: int
    chunk_cols: int
    swiglu: bool
    has_bias: bool
    accumulate: bool

    @property
    def registers(self) -> int:
        """Sums, parts and weights of each row, and what is loaded of it: 4, 3 or 2 blocks an SM."""
        if self.n_tokens > 1 or self.n_rows > 2:
            return 128
        return 64 if self.n_rows == 1 else 80


@cache
def _compile(form: Form) -> Kernel:
    """The kernel of a form."""
    n_tokens, n_rows, is_gated = form.n_tokens, form.n_rows, form.swiglu
    multiply = multiply_rows(form.type, n_tokens, n_rows, form.chunk_cols)
    finish = finish_rows(form.type, n_tokens, n_rows, is_gated, form.has_bias, form.accumulate)
    n_parts, n_results = n_rows * n_tokens, n_rows // 2 if is_gated else n_rows  # rows of out

    def gemv(quants: Any, highs: Any, scales: Any, x: Any, bias: Any, out: Any) -> None:
        acc = cuda.local.array(n_parts, float32)
        rows = cuda.local.array(n_rows, int64)
        n_out = out.shape[1]
        first_row = (cuda.blockIdx.x * N_WARPS + (cuda.threadIdx.x >> 5)) * n_results
        for r in range(n_rows):
            row = min(int64(first_row + r % n_results), n_out - 1)  # beyond: computed, not stored
            rows[r] = row + (n_out if r >= n_results else 0)
        multiply(quants, highs, scales, rows, x, int64(0), acc)
        finish(acc, first_row, int64(0), bias, out)

    return Kernel(gemv, registers=form.registers)


def gemv(
    w: Planes,
    x: Any,
    out: Any,
    *,
    stream: Launcher,
    bias: Any = None,
    accumulate: bool = False,
    warp_rows: int | None = None,
) -> None:
    """out (+)= W x (+ bias) for up to 8 vectors x; warp_rows 1, 2 or 4 (None: by size)."""
    check_array("bias", bias, np.float32, (w.n_rows,), optional=True)
    has_bias, shape = bias is not None, (int(x.shape[0]), w.n_rows, w.n_cols)
    plan = _planned(w.type, *shape, stream.n_sms, warp_rows, False, has_bias, accumulate)
    _launch(plan, w, x, bias, out, w.n_rows, stream)


def gemv_swiglu(
    w: Planes, x: Any, out: Any, *, stream: Launcher, warp_rows: int | None = None
) -> None:
    """out = silu(gate x) * (up x) for up to 8 vectors x; W is gate above up; warp_rows 2 or 4."""
    if w.n_rows % 2:
        raise KernelContractError(f"w: expected gate above up, got {w.n_rows} rows")
    shape = int(x.shape[0]), w.n_rows, w.n_cols
    plan = _planned(w.type, *shape, stream.n_sms, warp_rows, True, False, False)
    _launch(plan, w, x, None, out, w.n_rows // 2, stream)


@cache
def _planned(
    type: GGMLType, n_tokens: int, n_rows: int, n_cols: int, n_sms: int, warp_rows: int | None,
    swiglu: bool, has_bias: bool, accumulate: bool,
) -> tuple[Kernel, int]:  # fmt: skip
    """(kernel, grid), remembered: every product of every layer asks for them at every token."""
    if not 1 <= n_tokens <= MAX_TOKENS:
        raise KernelContractError(f"x: expected 1 to {MAX_TOKENS} rows, got {n_tokens}")
    a_warp = warp_rows or max(rows_a_warp(n_rows, n_tokens, n_sms), 2 if swiglu else 1)
    chunk_cols = StagedShape(type, n_tokens, n_cols).chunk_cols
    form = Form(type, n_tokens, a_warp, chunk_cols, swiglu, has_bias, accumulate)
    return _compile(form), ceil_div(n_rows, N_WARPS * a_warp)


def _launch(
    plan: tuple[Kernel, int], w: Planes, x: Any, bias: Any, out: Any, n_out: int, stream: Launcher
) -> None:
    kernel, grid = plan
    n_tokens = int(x.shape[0])
    check_planes(w)
    check_array("x", x, np.float32, (n_tokens, w.n_cols))
    check_array("out", out, np.float32, (n_tokens, n_out))
    highs, scales = (w.quants if plane is None else plane for plane in (w.highs, w.scales))
    given_bias = out if bias is None else bias
    stream.launch(kernel, grid, N_THREADS, w.quants, highs, scales, x, given_bias, out)
