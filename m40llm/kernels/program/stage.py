"""x of an instruction into shared memory, as staging.py lays it out, normed where asked.

Every block does it for itself: x is a few thousand numbers, and a norm of its own would cost one
more grid barrier. x was written by other blocks of the same launch, so it is never loaded through
the read-only cache.
"""

import math
from functools import cache
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as GGMLType
from numba import cuda, float32, uint32

from m40llm.kernels.block_reduce import block_sum
from m40llm.kernels.intrinsics import load_float4, load_float4_readonly, store_float4_shared
from m40llm.kernels.planes import DENSE
from m40llm.kernels.program.form import N_THREADS, Pool
from m40llm.kernels.reduce import FULL_MASK
from m40llm.kernels.unpack import LANES, RESULT_SCALE, STAGE_SCALE, factor


@cache
def norm_scales(n_seqs: int) -> Any:
    """norm_scales(x, eps, scale, scratch): scale[t] = 1 / sqrt(mean(x[t]^2) + eps)."""

    @cuda.jit(device=True, forceinline=True)
    def norm_scales(x: Any, eps: Any, scale: Any, scratch: Any) -> None:
        n_cols = x.shape[1]
        for t in range(n_seqs):
            sum_sq = float32(0)
            for quad in range(cuda.threadIdx.x, n_cols >> 2, N_THREADS):
                x0, x1, x2, x3 = load_float4(x, t * n_cols + 4 * quad)
                sum_sq += (x0 * x0 + x1 * x1) + (x2 * x2 + x3 * x3)
            mean_sq = block_sum(sum_sq, scratch) / float32(n_cols)
            scale[t] = float32(1) / math.sqrt(mean_sq + eps)

    return norm_scales


@cache
def stage_of(type: GGMLType, n_seqs: int) -> Any:
    """stage(x, norm, is_normed, scale, first_col, n_cols, staged, sums), by all threads."""
    shape, lane = Pool(type, n_seqs).shape, LANES[type]
    n_groups, pitch, token_slots = shape.n_groups, shape.pitch, shape.token_slots
    token_sums, has_sums = shape.token_sums, type not in DENSE
    sum_groups = lane.n_groups // lane.n_halves
    unit_scale = STAGE_SCALE if has_sums else 1.0
    low0, low1, low2, low3 = (np.float32(unit_scale * factor(type, 0, k)) for k in range(4))
    high0, high1, high2, high3 = (
        np.float32(unit_scale * factor(type, n_groups - 1, k)) for k in range(4)
    )

    @cuda.jit(device=True, forceinline=True)
    def stage(
        x: Any, norm: Any, is_normed: Any, scale: Any, first_col: Any, n_cols: Any,
        staged: Any, sums: Any,
    ) -> None:  # fmt: skip
        for t in range(n_seqs):
            for start in range(0, n_cols >> 2, N_THREADS):
                quad = uint32(start + cuda.threadIdx.x)
                unit, group = quad // uint32(n_groups), quad % uint32(n_groups)
                inside = quad < uint32(n_cols >> 2)
                total = float32(0)
                if inside:
                    col = first_col + 4 * quad
                    x0, x1, x2, x3 = load_float4(x, t * x.shape[1] + col)
                    if is_normed:
                        n0, n1, n2, n3 = load_float4_readonly(norm, col)
                        x0, x1 = x0 * scale[t] * n0, x1 * scale[t] * n1
                        x2, x3 = x2 * scale[t] * n2, x3 * scale[t] * n3
                    total = (x0 + x1) + (x2 + x3)
                    upper = group >= 4
                    x0 *= high0 if upper else low0
                    x1 *= high1 if upper else low1
                    x2 *= high2 if upper else low2
                    x3 *= high3 if upper else low3
                    slot = uint32(((unit >> 5) * n_groups + group) * pitch + (unit & 31))
                    store_float4_shared(staged, (t * token_slots + slot) * 4, x0, x1, x2, x3)
                if has_sums:
                    distance = 1
                    while distance < sum_groups:
                        total += cuda.shfl_xor_sync(FULL_MASK, total, distance)
                        distance *= 2
                    if inside and group % sum_groups == 0:
                        sums[uint32(t * token_sums + quad // sum_groups)] = total * float32(
                            RESULT_SCALE
                        )

    return stage
