"""x in shared memory, in the order in which the lanes of a matrix x vector want it.

A lane multiplies a load of quants, a unit of 4 to 32 columns, four columns (a group) at a time.
32 units lie side by side, group by group:

    staged  float32[token][span of 32 units][group][lane: 32 of a pitch of 32 to 36][4]
    sums    float32[token][unit][half]   of x over the columns that share a scale

A warp's load of a group is 512 contiguous bytes; the pitch keeps the stores of 8 neighbouring
threads, whose groups differ, out of each other's banks. Numbers are multiplied by the powers of
two that unpack.py asks for, sums by RESULT_SCALE and what scales.sum_factor says.
"""

from functools import cache
from typing import Any, Final

from gguf import GGMLQuantizationType as GGMLType
from numba import cuda, float32, int64, uint32

from m40llm.kernels.intrinsics import load_float4_readonly, store_float4_shared
from m40llm.kernels.reduce import FULL_MASK, WARP_SIZE
from m40llm.kernels.scales import has_offset, sum_factor
from m40llm.kernels.unpack import LANES, RESULT_SCALE, factors_of

N_WARPS: Final = 8
N_THREADS: Final = N_WARPS * WARP_SIZE
CHUNK_FLOATS: Final = 4096  # of x, over all tokens: 16 to 34 KiB with padding and sums


class StagedShape:
    """Where x lies in shared memory: [token][32 lanes' units][group][lane], 4 floats each."""

    def __init__(
        self, type: GGMLType, n_tokens: int, n_cols: int, chunk_floats: int = CHUNK_FLOATS
    ) -> None:
        lane = LANES[type]
        span = WARP_SIZE * lane.n_cols
        most = max(chunk_floats // n_tokens // 1024, 1) * 1024
        self.chunk_cols = most if n_cols > 1024 else 1024  # two kernels for all widths
        self.n_groups = lane.n_groups
        self.pitch = WARP_SIZE + (0 if lane.n_groups == 1 else 8 // lane.n_groups)
        self.token_slots = self.chunk_cols // span * lane.n_groups * self.pitch
        self.token_sums = self.chunk_cols // lane.n_cols * lane.n_halves


@cache
def stage_of(type: GGMLType, n_tokens: int, chunk_cols: int) -> Any:
    """stage(x, first_col, n_cols, staged, sums): a chunk of x and its sums, by all threads."""
    shape, lane = StagedShape(type, n_tokens, chunk_cols), LANES[type]
    n_groups, pitch, token_slots = shape.n_groups, shape.pitch, shape.token_slots
    token_sums, has_sums = shape.token_sums, has_offset(type)
    sum_groups = lane.n_groups // lane.n_halves
    factors, sum_scale = factors_of(type), sum_factor(type) * RESULT_SCALE

    @cuda.jit(device=True, forceinline=True)
    def stage(x: Any, first_col: Any, n_cols: Any, staged: Any, sums: Any) -> None:
        for token in range(n_tokens):
            for start in range(0, n_cols >> 2, N_THREADS):
                quad = start + cuda.threadIdx.x
                unit, group = quad // n_groups, quad % n_groups
                inside = quad < n_cols >> 2
                total = float32(0)
                if inside:
                    at = int64(token) * x.shape[1] + first_col + 4 * quad
                    x0, x1, x2, x3 = load_float4_readonly(x, at)
                    total = (x0 + x1) + (x2 + x3)
                    f0, f1, f2, f3 = factors(group)
                    slot = ((unit >> 5) * n_groups + group) * pitch + (unit & 31)
                    at = (token * token_slots + slot) * 4
                    store_float4_shared(staged, at, f0 * x0, f1 * x1, f2 * x2, f3 * x3)
                if has_sums:
                    distance = 1
                    while distance < sum_groups:
                        total += cuda.shfl_xor_sync(FULL_MASK, total, distance)
                        distance *= 2
                    if inside and group % sum_groups == 0:
                        sums[uint32(token * token_sums + quad // sum_groups)] = total * float32(
                            sum_scale
                        )

    return stage
