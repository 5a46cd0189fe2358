"""The inner loop of every matrix x vector: 16 bytes of quants of each row, or 8, in one lane.

    load(quants, highs, scales, rows, unit, words, high, packed)      what a lane needs of a unit
    multiply(words, high, packed, unit, block, place, staged, sums, acc)

A unit is the 4 to 32 columns whose quants a lane loads at a time (unpack.Lane). `rows` are a
warp's rows; `unit` counts from the row's first. Where staging.py has laid x out it is number
`place` of the 32 of a `block`. acc[r * n_tokens + token] takes the products; those of biased quants
begin with -bias times the sum of x (scales.sum_factor). The two are apart so that the next unit can
be on its way while this one is multiplied.

words   uint32[n_rows, 4]    local arrays, in registers
high    uint32[n_rows, 2]
packed  uint32[n_rows, 4]    of the plane of scales
"""

from functools import cache
from typing import Any

from gguf import GGMLQuantizationType as GGMLType
from numba import cuda, float32, uint32, uint64

from m40llm.kernels.hints import pinned
from m40llm.kernels.intrinsics import load_float4_shared, load_uint2_streaming, load_uint4_streaming
from m40llm.kernels.layouts import DENSE
from m40llm.kernels.scales import BIAS, SCALES
from m40llm.kernels.staging import CHUNK_FLOATS, StagedShape
from m40llm.kernels.unpack import LANES


def units_a_scale(type: GGMLType) -> int:
    """Units that share the entries of the planes of scales and of high bits."""
    return 1 if type in DENSE else 32 // LANES[type].n_cols


@cache
def load_unit(type: GGMLType, n_rows: int) -> Any:
    """load(quants, highs, scales, rows, unit, words, high, packed)"""
    fetch, n_shared = SCALES[type].fetch, units_a_scale(type)
    n_highs, n_loaded = LANES[type].n_highs, LANES[type].n_loaded

    @cuda.jit(device=True, forceinline=True)
    def load(
        quants: Any, highs: Any, scales: Any, rows: Any, unit: Any,
        words: Any, high: Any, packed: Any,
    ) -> None:  # fmt: skip
        scaled_unit = unit // n_shared
        row_units = uint32(uint32(quants.shape[1]) // uint32(n_loaded))
        for r in range(n_rows):
            # In units: up to 32 GB. Not pinned, it would be 64 bits wide, eight instructions.
            at = pinned(uint32(uint32(rows[r]) * row_units + uint32(unit)))
            if n_loaded == 4:
                words[r, 0], words[r, 1], words[r, 2], words[r, 3] = load_uint4_streaming(
                    quants, uint64(at) * uint64(4)
                )
            else:
                words[r, 0], words[r, 1] = load_uint2_streaming(quants, uint64(at) * uint64(2))
        for r in range(n_rows):
            a, b, c, d = fetch(scales, rows[r], scaled_unit)
            packed[r, 0], packed[r, 1], packed[r, 2], packed[r, 3] = a, b, c, d
            for h in range(n_highs):
                high[r, h] = highs[uint64(rows[r]), uint32(scaled_unit * n_highs + h)]

    return load


@cache
def multiply_unit(
    type: GGMLType, n_tokens: int, n_rows: int, chunk_cols: int, chunk_floats: int = CHUNK_FLOATS
) -> Any:
    """multiply(words, high, packed, unit, block, place, staged, sums, acc)"""
    lane, shape = LANES[type], StagedShape(type, n_tokens, chunk_cols, chunk_floats)
    _, decode, has_minimum = SCALES[type]
    unpack, n_groups, n_halves, n_highs = lane.unpack, lane.n_groups, lane.n_halves, lane.n_highs
    first_word, pitch, token_slots = lane.first_word, shape.pitch, shape.token_slots
    token_sums, is_dense = shape.token_sums, type in DENSE
    half_groups = n_groups // n_halves
    has_bias, n_shared = type in BIAS, units_a_scale(type)
    n_parts = n_rows * n_tokens

    @cuda.jit(device=True, forceinline=True)
    def multiply(
        words: Any, high: Any, packed: Any, unit: Any, block: Any, place: Any,
        staged: Any, sums: Any, acc: Any,
    ) -> None:  # fmt: skip
        part = cuda.local.array(n_parts, float32)
        weight = cuda.local.array((n_rows, 4), float32)
        sum_at = uint32((block * 32 + place) * n_halves)
        for half in range(n_halves):
            for token in range(n_tokens):
                begin = float32(0)
                if has_bias:
                    begin = sums[uint32(token * token_sums + sum_at + half)]
                for r in range(n_rows):
                    i = r * n_tokens + token
                    part[i] = acc[i] if is_dense else begin
            for g in range(half_groups):
                group = half * half_groups + g
                for r in range(n_rows):
                    first = first_word(group)
                    f0, f1, f2, f3 = unpack(
                        words[r, first],
                        words[r, first + 1 & 3],
                        words[r, first + 2 & 3],
                        words[r, first + 3 & 3],
                        high[r, 0],
                        high[r, n_highs // 2],
                        group,
                    )
                    weight[r, 0], weight[r, 1], weight[r, 2], weight[r, 3] = f0, f1, f2, f3
                slot = block * (n_groups * pitch) + place + group * pitch
                for token in range(n_tokens):
                    x0, x1, x2, x3 = load_float4_shared(staged, (token * token_slots + slot) * 4)
                    for r in range(n_rows):
                        i = r * n_tokens + token
                        part[i] += weight[r, 0] * x0
                        part[i] += weight[r, 1] * x1
                        part[i] += weight[r, 2] * x2
                        part[i] += weight[r, 3] * x3
            for r in range(n_rows):
                scale, minimum = decode(
                    packed[r, 0], packed[r, 1], packed[r, 2], packed[r, 3], unit // n_shared, half
                )
                for token in range(n_tokens):
                    i = r * n_tokens + token
                    if is_dense:
                        acc[i] = part[i]
                    else:
                        acc[i] += scale * part[i]
                    if has_minimum:
                        acc[i] += minimum * sums[uint32(token * token_sums + sum_at + half)]

    return multiply
