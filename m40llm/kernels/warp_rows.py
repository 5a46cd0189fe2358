"""A warp's rows times x, of all columns, and what becomes of the sums: every matrix x vector.

    multiply(quants, highs, scales, rows, x, first, acc)
    finish(acc, first_row, first_token, bias, out)

quants, highs, scales   of Planes
rows    int64[n_rows]               of the planes, a warp's own
x       float32[*, n_cols]          the n_tokens rows from element `first` on
acc     float32[n_rows * n_tokens]  part r * n_tokens + token; the lanes' parts are still apart
out     float32[*, n_out]           rows first_token up, columns first_row up

A block stages a chunk of x in shared memory, in the order in which lanes want it (a padded row of
32 lanes a group of four columns: no bank conflicts), multiplied by what undoes the place of each
quant in its word; see unpack.py. A lane then takes 16 bytes of each of its warp's rows at a time (8
of Q2_K and Q3_K).
A minimum, or the bias of a signed type, meets the sum of x over the run, which the staging made.
The whole block calls `multiply`, of staging.N_THREADS threads.
"""

import math
from functools import cache
from typing import Any

from gguf import GGMLQuantizationType as GGMLType
from numba import cuda, float32, uint32

from m40llm.kernels.layouts import DENSE
from m40llm.kernels.reduce import WARP_SIZE, warp_sum
from m40llm.kernels.staging import StagedShape, stage_of
from m40llm.kernels.unit_product import load_unit, multiply_unit
from m40llm.kernels.unpack import LANES, RESULT_SCALE


@cache
def multiply_rows(type: GGMLType, n_tokens: int, n_rows: int, chunk_cols: int) -> Any:
    """multiply(quants, highs, scales, rows, x, first, acc)"""
    shape = StagedShape(type, n_tokens, chunk_cols)
    n_staged, n_sums = 4 * n_tokens * shape.token_slots, n_tokens * shape.token_sums
    stage = stage_of(type, n_tokens, chunk_cols)
    load, multiply_one = load_unit(type, n_rows), multiply_unit(type, n_tokens, n_rows, chunk_cols)
    lane_cols, n_parts = LANES[type].n_cols, n_rows * n_tokens
    if type in DENSE:
        n_sums = 1

    @cuda.jit(device=True, forceinline=True)
    def multiply(
        quants: Any, highs: Any, scales: Any, rows: Any, x: Any, first: Any, acc: Any
    ) -> None:
        staged = cuda.shared.array(n_staged, float32, alignment=16)
        sums = cuda.shared.array(n_sums, float32)
        words = cuda.local.array((n_rows, 4), uint32)
        high = cuda.local.array((n_rows, 2), uint32)
        packed = cuda.local.array((n_rows, 4), uint32)
        for i in range(n_parts):
            acc[i] = float32(0)
        n_cols, lane = x.shape[1], cuda.threadIdx.x & 31
        for first_col in range(0, n_cols, chunk_cols):
            n_here = min(chunk_cols, n_cols - first_col)
            cuda.syncthreads()
            stage(x, first + first_col, n_here, staged, sums)
            cuda.syncthreads()
            first_unit = first_col // lane_cols
            for unit in range(lane, n_here // lane_cols, WARP_SIZE):
                load(quants, highs, scales, rows, first_unit + unit, words, high, packed)
                block, place = uint32(uint32(unit) >> uint32(5)), uint32(lane)
                multiply_one(
                    words, high, packed, first_unit + unit, block, place, staged, sums, acc
                )

    return multiply


@cache
def finish_rows(
    type: GGMLType, n_tokens: int, n_rows: int, swiglu: bool, has_bias: bool, accumulate: bool
) -> Any:
    """finish(acc, first_row, first_token, bias, out): sums over the warp; a lane stores a result.

    swiglu  the later half of the rows is `up`, which silu of the first half multiplies
    """
    n_results = n_rows // (2 if swiglu else 1) * n_tokens
    scale = 1.0 if type in DENSE else 1.0 / RESULT_SCALE

    @cuda.jit(device=True, forceinline=True)
    def finish(acc: Any, first_row: Any, first_token: Any, bias: Any, out: Any) -> None:
        lane = cuda.threadIdx.x & 31
        result = float32(0)
        for i in range(n_results):
            y = warp_sum(acc[i]) * float32(scale)
            if swiglu:
                up = warp_sum(acc[i + n_results]) * float32(scale)
                y = y / (float32(1) + math.exp(-y)) * up
            if lane == i:
                result = y
        row, token = first_row + lane // n_tokens, first_token + lane % n_tokens
        if lane < n_results and row < out.shape[1]:
            if has_bias:
                result += bias[row]
            if accumulate:
                result += out[token, row]
            out[token, row] = result

    return finish
