"""A warp's part of a product: its items, their weights, and the sums of what they give.

A span is a load of quants a lane, 16 bytes (8 of Q2_K and Q3_K): 512 of a row, or 256 of each of
two rows (form.row_lanes). An item is a group of rows by some spans, whose products a lane adds up
before the warp adds over its lanes. The items of a segment, those of a group one after another, are
dealt out to the block's warps in turn.
"""

from functools import cache
from typing import Any, NamedTuple

from gguf import GGMLQuantizationType as GGMLType
from numba import cuda, float32, int32, uint8, uint16, uint32

from m40llm.kernels.layouts import DENSE, LAYOUTS
from m40llm.kernels.program import words
from m40llm.kernels.program.code import word_of
from m40llm.kernels.program.exchange import give1
from m40llm.kernels.program.form import MAX_STAGE_COLS as MOST
from m40llm.kernels.program.form import (
    N_WARPS,
    Form,
    is_sliced,
    max_stage_cols,
    row_lanes,
    rows_a_lane,
)
from m40llm.kernels.program.rows import pair_of
from m40llm.kernels.reduce import WARP_SIZE, scatter_sums
from m40llm.kernels.unit_product import load_unit, multiply_unit
from m40llm.kernels.views import array_at


def _scale_kind(type: GGMLType) -> Any:
    """The type of the plane of scales."""
    return uint32 if type in DENSE else (uint8, uint16, uint32)[LAYOUTS[type].scale_bytes // 2]


class Items(NamedTuple):
    """Of a segment: its groups and spans, as a warp goes through them."""

    first_group: Any
    end_group: Any
    first_span: Any
    n_spans: Any
    chunk_spans: Any
    n_chunks: Any
    down: Any  # a warp's next item is N_WARPS further on: so many groups, and `right` chunks
    right: Any


@cuda.jit(device=True, forceinline=True)
def items_of(w: Any, first_group: Any, end_group: Any, stage: Any, is_last: Any) -> Any:
    """The items of a stage, the last one or another, of these groups."""
    n_spans = word_of(w, words.LAST_SPANS if is_last else words.STAGE_SPANS)
    n_chunks = word_of(w, words.LAST_CHUNKS if is_last else words.STAGE_CHUNKS)
    down = int32(int32(N_WARPS * _inverse(w, is_last)) >> 16)
    right = int32(N_WARPS - down * n_chunks)
    first_span = int32(word_of(w, words.FIRST_SPAN) + stage * word_of(w, words.STAGE_SPANS))
    chunk_spans = w[words.CHUNK_SPANS]
    return Items(
        first_group, end_group, first_span, n_spans, int32(chunk_spans), n_chunks, down, right
    )


@cuda.jit(device=True, forceinline=True)
def _inverse(w: Any, is_last: Any) -> Any:
    return word_of(w, words.LAST_INVERSE if is_last else words.STAGE_INVERSE)


@cuda.jit(device=True, forceinline=True)
def first_span_of(w: Any, items: Any, is_last: Any, warp: Any) -> Any:
    """(group, chunk, span) with which the warp begins; spans count from the segment's first."""
    down = int32(int32(warp * _inverse(w, is_last)) >> 16)
    chunk = int32(warp - down * items.n_chunks)
    return int32(items.first_group + down), chunk, int32(chunk * items.chunk_spans)


@cuda.jit(device=True, forceinline=True)
def is_items_last(items: Any, chunk: Any, span: Any) -> Any:
    """Whether the span is its item's last."""
    return int32(span + 1) == min(int32((chunk + 1) * items.chunk_spans), items.n_spans)


@cuda.jit(device=True, forceinline=True)
def next_span_of(items: Any, group: Any, chunk: Any, span: Any) -> Any:
    """(group, chunk, span) of the warp's next span."""
    is_last = int32(1 if is_items_last(items, chunk, span) else 0)
    right = int32(chunk + items.right)
    is_over = int32(1 if right >= items.n_chunks else 0)
    next_chunk = int32(right - is_over * items.n_chunks)
    next_group = int32(group + items.down + is_over)
    if is_last != 0:
        return next_group, next_chunk, int32(next_chunk * items.chunk_spans)
    return group, chunk, int32(span + 1)


@cache
def load_of(form: Form, type: GGMLType) -> Any:
    """load(w, n_rows, n_units, items, group, span, now, high, packed): a lane's part of a span of a
    group."""
    n, n_row_lanes = rows_a_lane(type, form.n_seqs), row_lanes(form.n_seqs)
    find_pair, load_words = pair_of(form), load_unit(type, n)
    half, scale_kind, n_col_lanes = n // 2, _scale_kind(type), WARP_SIZE // n_row_lanes

    @cuda.jit(device=True, forceinline=True)
    def load(
        w: Any, n_rows: Any, n_units: Any, items: Any, group: Any, span: Any,
        now: Any, high: Any, packed: Any,
    ) -> None:  # fmt: skip
        rows = cuda.local.array(n, uint32)
        lane = uint32(cuda.threadIdx.x & 31)
        unit = int32((items.first_span + span) * n_col_lanes + lane // uint32(n_row_lanes))
        unit = min(unit, int32(n_units - 1))  # beyond: multiplied by zeros
        last = int32(n_rows - 1)
        for r in range(half):
            pair = int32((group * half + r) * n_row_lanes + lane % uint32(n_row_lanes))
            first, jump = find_pair(w, n_rows, pair)
            rows[r] = uint32(min(first, last))  # beyond: multiplied, not stored
            rows[half + r] = uint32(min(int32(first + jump), last))
        # Unsigned: a product of two of 32 bits is one instruction.
        quants = array_at(w[words.QUANTS], (n_rows, uint32(word_of(w, words.QUANT_WORDS))), uint32)
        highs = array_at(w[words.HIGHS], (n_rows, uint32(word_of(w, words.HIGH_WORDS))), uint32)
        scales = array_at(
            w[words.SCALES], (n_rows, uint32(word_of(w, words.SCALE_WORDS))), scale_kind
        )
        load_words(quants, highs, scales, rows, uint32(unit), now, high, packed)

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
def _leave_of(form: Form, type: GGMLType) -> Any:
    """leave(items, chunk, group, result, results, mark): the warp's results of an item, one a lane
    (reduce.scatter_sums).

    Where products are sliced, to whoever finishes them: `results` is a part's exchange words
    uint32[pairs, n_seqs, 2, 2], `mark` the epoch. Else into partial results in shared memory,
    beside what is there where `mark`.
    """
    n_seqs, n, n_row_lanes = form.n_seqs, rows_a_lane(type, form.n_seqs), row_lanes(form.n_seqs)
    n_results, sliced = n * n_seqs, is_sliced(form.n_seqs)
    lanes_a_result = WARP_SIZE // n_results
    assert n_row_lanes == 1 or sliced, f"{form}: partial results of two row lanes"
    assert n == 2 or not sliced, f"{form}: a lane of a sliced product has one pair of rows"

    @cuda.jit(device=True, forceinline=True)
    def leave(
        items: Any, chunk: Any, group: Any, result: Any, results: Any, mark: Any
    ) -> None:  # fmt: skip
        lane = uint32(cuda.threadIdx.x & 31)
        number = lane // uint32(lanes_a_result)
        if lane % uint32(lanes_a_result) < n_row_lanes:
            if sliced:
                s, is_second = number % uint32(n_seqs), number // uint32(n_seqs)
                pair = uint32(group) * n_row_lanes + lane % uint32(n_row_lanes)
                give1(results, int32((pair * n_seqs + s) * 2 + is_second), result, mark)
            else:
                n_groups = int32(items.end_group - items.first_group)
                at = uint32((chunk * n_groups + group - items.first_group) * n_results)
                at += number
                results[at] = result + (results[at] if mark else float32(0))

    return leave


@cache
def span_of(form: Form, type: GGMLType) -> Any:
    """do_span(items, group, chunk, span, now, high, packed, staged, sums, acc, results, mark):
    a span's products, into acc; left to `results` if it is its item's last."""
    n_seqs, n, n_row_lanes = form.n_seqs, rows_a_lane(type, form.n_seqs), row_lanes(form.n_seqs)
    n_results, n_col_lanes = n * n_seqs, WARP_SIZE // n_row_lanes
    multiply = multiply_unit(type, n_seqs, n, max_stage_cols(n_seqs), MOST)
    totals, leave = scatter_sums(n_results, n_row_lanes, WARP_SIZE), _leave_of(form, type)

    @cuda.jit(device=True, forceinline=True)
    def do_span(
        items: Any, group: Any, chunk: Any, span: Any,
        now: Any, high: Any, packed: Any, staged: Any, sums: Any, acc: Any, results: Any,
        mark: Any,
    ) -> None:  # fmt: skip
        lane = uint32(cuda.threadIdx.x & 31)
        column = lane // uint32(n_row_lanes)
        unit = uint32(int32(items.first_span + span) * n_col_lanes + column)
        block, place = span // n_row_lanes, uint32(span % n_row_lanes * n_col_lanes + column)
        multiply(now, high, packed, unit, uint32(block), place, staged, sums, acc)
        if is_items_last(items, chunk, span):
            totals(acc)
            leave(items, chunk, group, acc[0], results, mark)
            for i in range(n_results):
                acc[i] = float32(0)

    return do_span


@cuda.jit(device=True, forceinline=True)
def sum_chunks(partials: Any, at: Any, stride: Any, n_chunks: Any) -> Any:
    """partials[at] + partials[at + stride] + ..., n_chunks of them, four loads under way."""
    total, chunk = float32(0), int32(0)
    while chunk < n_chunks:
        a = partials[uint32(at)]
        b, c, d = float32(0), float32(0), float32(0)
        if chunk + 1 < n_chunks:
            b = partials[uint32(at + stride)]
        if chunk + 2 < n_chunks:
            c = partials[uint32(at + 2 * stride)]
        if chunk + 3 < n_chunks:
            d = partials[uint32(at + 3 * stride)]
        total += (a + b) + (c + d)
        at, chunk = int32(at + 4 * stride), int32(chunk + 4)
    return total
