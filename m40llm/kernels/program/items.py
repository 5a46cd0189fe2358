"""A warp's part of a product: its items, their weights, and the sums of what they give.

An item is a group of rows by a span of columns: 16 bytes of quants of each row a lane. The items
of a segment, span by span of a group, are dealt out to the block's warps in turn.
"""

import math
from functools import cache
from typing import Any, NamedTuple

from gguf import GGMLQuantizationType as GGMLType
from numba import cuda, float32, int32, int64, uint16, uint32

from m40llm.kernels.intrinsics import uint_as_float
from m40llm.kernels.planes import DENSE, LAYOUTS
from m40llm.kernels.program import words
from m40llm.kernels.program.form import MAX_STAGE_COLS as MOST
from m40llm.kernels.program.form import N_WARPS, Form, max_stage_cols, rows_a_warp
from m40llm.kernels.program.rows import pair_of
from m40llm.kernels.reduce import FULL_MASK, WARP_SIZE
from m40llm.kernels.unit_product import load_unit, multiply_unit
from m40llm.kernels.views import array_at


@cache
def warp_totals(n: int) -> Any:
    """totals(acc): acc[0] of lane l is the warp's sum of acc[l // (32 / n)]; n a power of two.

    n - 1 shuffles and log2(32 / n) more, where n sums of their own would take 5 n.
    """

    @cuda.jit(device=True, forceinline=True)
    def totals(acc: Any) -> None:
        lane = cuda.threadIdx.x & 31
        width, half = 16, n // 2
        while half > 0:
            is_upper = lane & width != 0
            for i in range(half):
                low, high = acc[i], acc[i + half]
                given = low if is_upper else high
                kept = high if is_upper else low
                acc[i] = kept + cuda.shfl_xor_sync(FULL_MASK, given, width)
            width //= 2
            half //= 2
        while width > 0:
            acc[0] += cuda.shfl_xor_sync(FULL_MASK, acc[0], width)
            width //= 2

    return totals


def _scale_kind(type: GGMLType) -> Any:
    """The type of the plane of scales."""
    if type in DENSE:
        return uint32
    head = LAYOUTS[type].head
    return uint16 if head.stop - head.start == 2 else uint32


class Items(NamedTuple):
    """Of a segment: its groups and spans, as a warp goes through them."""

    first_group: Any
    end_group: Any
    first_span: Any
    n_spans: Any
    down: Any  # a warp's next item is N_WARPS further on: so many groups, and `right` spans
    right: Any


@cuda.jit(device=True, forceinline=True)
def spans_of(w: Any, stage: Any) -> Any:
    """(first_span, n_spans, down, right) of a stage's items."""
    is_last = stage + 1 == w[words.N_STAGES]
    n_spans = int32(w[words.LAST_SPANS if is_last else words.STAGE_SPANS])
    inverse = int32(w[words.LAST_INVERSE if is_last else words.STAGE_INVERSE])
    down = int32(int32(N_WARPS * inverse) >> 16)
    right = int32(N_WARPS - down * n_spans)
    return int32(stage * int32(w[words.STAGE_SPANS])), n_spans, down, right


@cuda.jit(device=True, forceinline=True)
def first_item(w: Any, items: Any, stage: Any, warp: Any) -> Any:
    """(group, span) of the warp's first item; span counts from the segment's first."""
    is_last = stage + 1 == w[words.N_STAGES]
    inverse = int32(w[words.LAST_INVERSE if is_last else words.STAGE_INVERSE])
    down = int32(int32(warp * inverse) >> 16)
    return int32(items.first_group + down), int32(warp - down * items.n_spans)


@cuda.jit(device=True, forceinline=True)
def next_item(items: Any, group: Any, span: Any) -> Any:
    """(group, span) of the warp's next item."""
    group, span = int32(group + items.down), int32(span + items.right)
    if span >= items.n_spans:
        group, span = int32(group + 1), int32(span - items.n_spans)
    return group, span


@cache
def load_of(form: Form, type: GGMLType) -> Any:
    """load(w, n_rows, n_units, items, group, span, now, high, packed): a lane's part of an item,
    if there is one."""
    n = rows_a_warp(type, form.n_seqs)
    find_pair, load_words = pair_of(form), load_unit(type, n)
    half, scale_kind = n // 2, _scale_kind(type)

    @cuda.jit(device=True, forceinline=True)
    def load(
        w: Any, n_rows: Any, n_units: Any, items: Any, group: Any, span: Any,
        now: Any, high: Any, packed: Any,
    ) -> None:  # fmt: skip
        rows = cuda.local.array(n, int64)
        unit = int32((items.first_span + span) * WARP_SIZE + (cuda.threadIdx.x & 31))
        unit = int32(min(unit, n_units - 1))  # beyond: multiplied, not added
        if group < items.end_group:
            last = int32(n_rows - 1)
            for r in range(half):
                first, jump = find_pair(w, n_rows, int32(group * half + r))
                rows[r] = int64(min(first, last))  # beyond: multiplied, not stored
                rows[half + r] = int64(min(int32(first + jump), last))
            shape = (n_rows, int32(w[words.QUANT_WORDS]))
            quants = array_at(w[words.QUANTS], shape, uint32)
            highs = array_at(w[words.HIGHS], (n_rows, int32(w[words.HIGH_WORDS])), uint32)
            scales = array_at(w[words.SCALES], (n_rows, int32(w[words.SCALE_WORDS])), scale_kind)
            load_words(quants, highs, scales, rows, unit, now, high, packed)

    return load


@cache
def copy_of(n: int) -> Any:
    """copy(to..., of..., zero): an item's weights, xor zero."""

    @cuda.jit(device=True, forceinline=True)
    def copy(
        now: Any, now_high: Any, now_packed: Any, then: Any, then_high: Any, then_packed: Any,
        zero: Any,
    ) -> None:  # fmt: skip
        for r in range(n):
            for k in range(4):
                now[r, k] = uint32(then[r, k] ^ zero)
                now_packed[r, k] = uint32(then_packed[r, k] ^ zero)
            for k in range(2):
                now_high[r, k] = uint32(then_high[r, k] ^ zero)

    return copy


@cache
def item_of(form: Form, type: GGMLType) -> Any:
    """do_item(items, n_units, group, span, now, high, packed, staged, sums, partials)"""
    n_seqs, n = form.n_seqs, rows_a_warp(type, form.n_seqs)
    n_results = n * n_seqs
    lanes_a_result = WARP_SIZE // n_results
    multiply = multiply_unit(type, n_seqs, n, max_stage_cols(n_seqs), MOST)
    totals = warp_totals(n_results)

    @cuda.jit(device=True, forceinline=True)
    def do_item(
        items: Any, n_units: Any, group: Any, span: Any, now: Any, high: Any, packed: Any,
        staged: Any, sums: Any, partials: Any,
    ) -> None:  # fmt: skip
        acc = cuda.local.array(n_results, float32)
        for i in range(n_results):
            acc[i] = float32(0)
        lane = int32(cuda.threadIdx.x & 31)
        unit = int32((items.first_span + span) * WARP_SIZE + lane)
        inside = int32(min(unit, n_units - 1))
        staged_unit = int32(inside - items.first_span * WARP_SIZE)
        multiply(now, high, packed, inside, staged_unit, staged, sums, acc)
        for i in range(n_results):  # no branch: it would wait for what is under way
            acc[i] = acc[i] if unit < n_units else float32(0)
        totals(acc)
        if lane % lanes_a_result == 0:
            n_groups = int32(items.end_group - items.first_group)
            at = (span * n_groups + group - items.first_group) * n_results
            partials[uint32(at + lane // lanes_a_result)] = acc[0]

    return do_item


@cache
def norm_scale_of(n_seqs: int) -> Any:
    """norm_scale(w, n_cols, s, squares): 1 / sqrt(mean x^2 + eps), or 1 where there is no norm."""

    @cuda.jit(device=True, forceinline=True)
    def norm_scale(w: Any, n_cols: Any, s: Any, squares: Any) -> Any:
        scale = float32(1)
        if w[words.NORM] != 0:
            total = float32(0)
            for warp in range(N_WARPS):
                total += squares[uint32(s * N_WARPS + warp)]
            eps = uint_as_float(uint32(w[words.EPS]))
            scale = float32(1) / math.sqrt(total / float32(n_cols) + eps)
        return scale

    return norm_scale


@cuda.jit(device=True, forceinline=True)
def sum_spans(partials: Any, at: Any, stride: Any, n_spans: Any) -> Any:
    """partials[at] + partials[at + stride] + ..., n_spans of them, four loads under way."""
    total, span = float32(0), int32(0)
    while span < n_spans:
        a = partials[uint32(at)]
        b, c, d = float32(0), float32(0), float32(0)
        if span + 1 < n_spans:
            b = partials[uint32(at + stride)]
        if span + 2 < n_spans:
            c = partials[uint32(at + 2 * stride)]
        if span + 3 < n_spans:
            d = partials[uint32(at + 3 * stride)]
        total += (a + b) + (c + d)
        at, span = int32(at + 4 * stride), int32(span + 4)
    return total
