"""Matrix product: out[m, n] = sum_k x[m, k] * W[n, k]  (+ bias[n]) (+ out[m, n] as it was).

x      float32 or float16[n_tokens, n_cols]   any n_tokens >= 1
W      Planes[n_rows, n_cols]                 F32, F16 or quantised; any n_rows; n_cols as planes.py
                                              has it (multiples of the block; F16 8, F32 4)
bias   float32[n_rows]
out    float32[n_tokens, n_rows]              aliases nothing

grid     (ceil(n_rows / TILE), ceil(n_tokens / TILE)) blocks of 256 threads, TILE 128 or 64
FLOPs    2 * n_tokens * n_rows * n_cols, in FP32 (compute-bound from about 30 tokens on)
shared   2 buffers of 16 columns of both tiles: 33 KiB (TILE 128), 17 KiB (TILE 64)
sm_52    registers at most 128: two blocks on an SM, 16 warps (25 %); TILE 64 up to 80: three;
         Q5_*, Q6_K with TILE 128 up to 168: one block, since they would spill with 128
         FFMA share of the loop over tiles of 16 columns, all else in it counted: TILE 128 F16 85 %
         (1,024 of 1,203), Q4_K 81 %; TILE 64 F16 67 %, Q4_K 58 %

While a block multiplies one tile of 16 columns from shared memory, 8 x 8 sums a thread (4 x 4), its
loads of the next are under way; weights are dequantised on the way into shared memory. There a
tile is [column][row]. Its 16-byte loads meet in no bank; 4 floats of padding leave the stores, of
rows transposed, two lanes to a bank. (An XOR swizzle frees these too, but its addresses cost more
instructions than they save.) An unsigned index spares Numba's test for a negative one.
"""

from functools import cache
from typing import Any, Final

import numpy as np
from gguf import GGMLQuantizationType as GGMLType
from numba import cuda, float32, int64, uint32

from m40llm.errors import KernelContractError
from m40llm.kernels.contract import Kernel, Launcher, ceil_div, check_array
from m40llm.kernels.dequantize import convert, fetch
from m40llm.kernels.intrinsics import (
    half2_to_float2,
    load_float4_readonly,
    load_float4_shared,
    load_uint2_readonly,
)
from m40llm.kernels.planes import Planes, check_planes
from m40llm.kernels.unpack import LANES

N_THREADS: Final = 256
BK: Final = 16  # columns of a tile in shared memory
PADDING: Final = 4  # floats after a column of a tile


def _registers(type: GGMLType, tile: int) -> int:
    """Two blocks of 256 threads on an SM; one where the high bits of quants would spill."""
    return 168 if tile == 128 and LANES[type].n_highs else 128


@cache
def _load_x(is_half: bool, n_quads: int) -> Any:
    """load_x(x, first_row, col, quads): 4 columns of every 64th row from first_row on."""

    @cuda.jit(device=True, forceinline=True)
    def load_x(x: Any, first_row: Any, col: Any, quads: Any) -> None:
        for quad in range(n_quads):
            x0, x1, x2, x3 = float32(0), float32(0), float32(0), float32(0)
            if col < x.shape[1]:
                row = min(int64(first_row + 64 * quad), x.shape[0] - 1)
                at = row * x.shape[1] + col
                if is_half:
                    low, high = load_uint2_readonly(x, at)
                    x0, x1 = half2_to_float2(low)
                    x2, x3 = half2_to_float2(high)
                else:
                    x0, x1, x2, x3 = load_float4_readonly(x, at)
            quads[quad, 0], quads[quad, 1], quads[quad, 2], quads[quad, 3] = x0, x1, x2, x3

    return load_x


@cache
def _add_products(tile: int) -> Any:
    """add_products(x_tile, w_tile, x_at, w_at, acc): of one column, 4 rows in every 64."""
    n_quads = tile // 64
    n_each = 4 * n_quads

    @cuda.jit(device=True, forceinline=True)
    def add_products(x_tile: Any, w_tile: Any, x_at: Any, w_at: Any, acc: Any) -> None:
        x = cuda.local.array(n_each, float32)
        w = cuda.local.array(n_each, float32)
        for quad in range(n_quads):
            i = 4 * quad
            x[i], x[i + 1], x[i + 2], x[i + 3] = load_float4_shared(x_tile, x_at + 64 * quad)
            w[i], w[i + 1], w[i + 2], w[i + 3] = load_float4_shared(w_tile, w_at + 64 * quad)
        for i in range(n_each):
            for j in range(n_each):
                acc[i, j] += x[i] * w[j]

    return add_products


@cache
def _multiply_tile(tile: int) -> Any:
    """multiply_tile(x_tile, w_tile, at, acc): 16 columns from the buffer at `at`.

    Written out, because LLVM leaves a loop over bodies of this size as it is: 3 % more FFMA.
    """
    add_products = _add_products(tile)

    pitch = tile + PADDING

    @cuda.jit(device=True, forceinline=True)
    def multiply_four(x_tile: Any, w_tile: Any, x_at: Any, w_at: Any, acc: Any) -> None:
        add_products(x_tile, w_tile, x_at, w_at, acc)
        add_products(x_tile, w_tile, x_at + pitch, w_at + pitch, acc)
        add_products(x_tile, w_tile, x_at + 2 * pitch, w_at + 2 * pitch, acc)
        add_products(x_tile, w_tile, x_at + 3 * pitch, w_at + 3 * pitch, acc)

    @cuda.jit(device=True, forceinline=True)
    def multiply_tile(x_tile: Any, w_tile: Any, at: Any, acc: Any) -> None:
        x_at, w_at = at + (cuda.threadIdx.x >> 4) * 4, at + (cuda.threadIdx.x & 15) * 4
        multiply_four(x_tile, w_tile, x_at, w_at, acc)
        multiply_four(x_tile, w_tile, x_at + 4 * pitch, w_at + 4 * pitch, acc)
        multiply_four(x_tile, w_tile, x_at + 8 * pitch, w_at + 8 * pitch, acc)
        multiply_four(x_tile, w_tile, x_at + 12 * pitch, w_at + 12 * pitch, acc)

    return multiply_tile


@cache
def _store_tiles(type: GGMLType, tile: int) -> Any:
    """store_tiles(quads, raw, col, x_tile, w_tile, at): loaded numbers into the buffer at `at`."""
    convert_weights, n_quads, pitch = convert(type), tile // 64, tile + PADDING

    @cuda.jit(device=True, forceinline=True)
    def store_tiles(quads: Any, raw: Any, col: Any, x_tile: Any, w_tile: Any, at: Any) -> None:
        thread = cuda.threadIdx.x
        x_at = at + 4 * (thread & 3) * pitch + (thread >> 2)
        for quad in range(n_quads):
            for k in range(4):
                x_tile[uint32(x_at + k * pitch + 64 * quad)] = quads[quad, k]
        if thread < 2 * tile:
            weights = cuda.local.array(8, float32)
            convert_weights(raw, col, weights)
            w_at = at + 8 * (thread & 1) * pitch + (thread >> 1)
            for k in range(8):
                w_tile[uint32(w_at + k * pitch)] = weights[k]

    return store_tiles


@cache
def _store_sums(tile: int, has_bias: bool, accumulate: bool) -> Any:
    """store_sums(acc, first_token, first_row, bias, out): within the bounds of out."""
    n_each = tile // 16

    @cuda.jit(device=True, forceinline=True)
    def store_sums(acc: Any, first_token: Any, first_row: Any, bias: Any, out: Any) -> None:
        for i in range(n_each):
            token = first_token + (i >> 2) * 64 + (cuda.threadIdx.x >> 4) * 4 + (i & 3)
            if token < out.shape[0]:
                for j in range(n_each):
                    row = first_row + (j >> 2) * 64 + (cuda.threadIdx.x & 15) * 4 + (j & 3)
                    if row < out.shape[1]:
                        value = acc[i, j]
                        if has_bias:
                            value += bias[row]
                        if accumulate:
                            value += out[token, row]
                        out[token, row] = value

    return store_sums


@cache
def _compile(
    type: GGMLType, tile: int, x_is_half: bool, has_bias: bool, accumulate: bool
) -> Kernel:
    """The kernel with tiles of tile x tile."""
    n_quads, n_each, n_shared = tile // 64, tile // 16, 2 * BK * (tile + PADDING)
    load_x, load_weights = _load_x(x_is_half, n_quads), fetch(type)
    multiply_tile, store_tiles = _multiply_tile(tile), _store_tiles(type, tile)
    store_sums = _store_sums(tile, has_bias, accumulate)

    def gemm(quants: Any, highs: Any, scales: Any, x: Any, bias: Any, out: Any) -> None:
        x_tile = cuda.shared.array(n_shared, float32, alignment=16)
        w_tile = cuda.shared.array(n_shared, float32, alignment=16)
        acc = cuda.local.array((n_each, n_each), float32)
        quads = cuda.local.array((n_quads, 4), float32)
        raw = cuda.local.array(8, uint32)
        for i in range(n_each):
            for j in range(n_each):
                acc[i, j] = float32(0)
        for k in range(8):
            raw[k] = uint32(0)
        thread, n_cols = cuda.threadIdx.x, x.shape[1]
        first_token, first_row = cuda.blockIdx.y * tile, cuda.blockIdx.x * tile
        token, row = first_token + (thread >> 2), first_row + (thread >> 1)
        row = min(int64(row), out.shape[1] - 1)  # beyond the last: computed, not stored
        x_col, w_col = (thread & 3) * 4, (thread & 1) * 8
        at = 0
        for col in range(0, n_cols + BK, BK):  # one turn more: what was loaded is used a turn later
            if col < n_cols:
                load_x(x, token, col + x_col, quads)
                if thread < 2 * tile and col + w_col < n_cols:
                    load_weights(quants, highs, scales, row, col + w_col, n_cols, raw)
            if col > 0:
                multiply_tile(x_tile, w_tile, at, acc)
                at = n_shared // 2 - at
            if col < n_cols:
                store_tiles(quads, raw, col + w_col, x_tile, w_tile, at)
                cuda.syncthreads()
        store_sums(acc, first_token, first_row, bias, out)

    return Kernel(gemm, registers=_registers(type, tile))


def gemm(
    w: Planes,
    x: Any,
    out: Any,
    *,
    stream: Launcher,
    bias: Any = None,
    accumulate: bool = False,
    tile: int | None = None,
) -> None:
    """out (+)= x W^T (+ bias); tile 64, or 128 where that is a block an SM (None: by size)."""
    n_tokens, x_is_half = int(x.shape[0]), np.dtype(x.dtype) == np.float16
    if n_tokens < 1:
        raise KernelContractError("x: expected at least one row, got none")
    check_planes(w)
    check_array("x", x, np.float16 if x_is_half else np.float32, (n_tokens, w.n_cols))
    check_array("out", out, np.float32, (n_tokens, w.n_rows))
    check_array("bias", bias, np.float32, (w.n_rows,), optional=True)
    if tile is None:
        n_blocks = ceil_div(n_tokens, 128) * ceil_div(w.n_rows, 128)
        tile = 128 if n_tokens > 64 and n_blocks >= stream.n_sms else 64
    kernel = _compile(w.type, tile, x_is_half, bias is not None, accumulate)
    grid = (ceil_div(w.n_rows, tile), ceil_div(n_tokens, tile))
    highs, scales = (w.quants if plane is None else plane for plane in (w.highs, w.scales))
    stream.launch(
        kernel, grid, N_THREADS, w.quants, highs, scales, x, out if bias is None else bias, out
    )
