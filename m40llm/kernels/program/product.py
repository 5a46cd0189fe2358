"""Matrix x vector as an instruction: the grid shares the rows, a block's warps share its items.

An item is a group of rows (pairs of rows.py) by a span of columns: 16 bytes of quants of each row
a lane. One warp multiplies it, adds over its lanes, and leaves a partial result for each row and
sequence in shared memory. A thread then adds up the partial results of one row and sequence, in
the order of the columns. So no sum depends on the grid.

A block takes its groups a panel at a time, a panel's columns a stage at a time: a segment. Most
products have one. A warp has two items' weights under way: the first two of a segment before it
waits for what the segment needs, above all before x has arrived. They depend on nothing, and so
the memory is busy while blocks wait for each other.

What decides between ways through the loop is read from the words each time: a condition in a
register would be the same all through the loop, and LLVM would make a loop for each.

over the size law: `product` is one function so that two items' weights stay in registers.
"""

import math
from functools import cache
from typing import Any, NamedTuple

from gguf import GGMLQuantizationType as GGMLType
from numba import cuda, float32, int32, int64, uint16, uint32

from m40llm.kernels.intrinsics import uint_as_float
from m40llm.kernels.planes import DENSE, LAYOUTS
from m40llm.kernels.program import words
from m40llm.kernels.program.epilogue import LOWEST, Extras, Pair, extras_of, finish_of, gather_of
from m40llm.kernels.program.exchange import epoch_of
from m40llm.kernels.program.form import MAX_STAGE_COLS as MOST
from m40llm.kernels.program.form import (
    N_WARPS,
    PARTIAL_FLOATS,
    Form,
    Pool,
    max_stage_cols,
    rows_a_warp,
)
from m40llm.kernels.program.rows import pair_of
from m40llm.kernels.program.stage import prepare_of, take_of
from m40llm.kernels.reduce import FULL_MASK, WARP_SIZE, warp_sum
from m40llm.kernels.unit_product import load_unit, multiply_unit
from m40llm.kernels.unpack import RESULT_SCALE
from m40llm.kernels.views import array_at, part_of

_UNSEEN = 1 << 60  # elements that a view may have; what is used lies within the buffer


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
def _load_of(form: Form, type: GGMLType) -> Any:
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
        if group < items.end_group and unit < n_units:
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
def _item_of(form: Form, type: GGMLType) -> Any:
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
        if unit < n_units:
            multiply(now, high, packed, unit, int32(span * WARP_SIZE + lane), staged, sums, acc)
        totals(acc)
        if lane % lanes_a_result == 0:
            n_groups = int32(items.end_group - items.first_group)
            at = (span * n_groups + group - items.first_group) * n_results
            partials[uint32(at + lane // lanes_a_result)] = acc[0]

    return do_item


@cache
def _norm_scale_of(n_seqs: int) -> Any:
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


@cache
def product_of(form: Form, type: GGMLType) -> Any:
    """product(w, step, n_instructions, slot_pos, pool, squares): the instruction w."""
    n_seqs, n = form.n_seqs, rows_a_warp(type, form.n_seqs)
    half, n_results = n // 2, n * n_seqs
    pool_of = Pool(type, n_seqs)
    pool_of.check()
    n_staged, n_sums = pool_of.n_staged, pool_of.n_sums
    load, do_item, find_pair = _load_of(form, type), _item_of(form, type), pair_of(form)
    prepare, take = prepare_of(type, n_seqs), take_of(type, n_seqs)
    extras, finish, gather = extras_of(form), finish_of(form), gather_of(form)
    norm_scale = _norm_scale_of(n_seqs)
    result_scale = 1.0 if type in DENSE else 1.0 / RESULT_SCALE

    @cuda.jit(device=True, forceinline=True)
    def product(
        w: Any, step: Any, n_instructions: Any, slot_pos: Any, pool: Any, squares: Any
    ) -> None:
        a_words = cuda.local.array((n, 4), uint32)
        a_high = cuda.local.array((n, 2), uint32)
        a_packed = cuda.local.array((n, 4), uint32)
        b_words = cuda.local.array((n, 4), uint32)
        b_high = cuda.local.array((n, 2), uint32)
        b_packed = cuda.local.array((n, 4), uint32)
        staged = part_of(pool, 0, n_staged, float32)
        sums = part_of(pool, n_staged, n_sums, float32)
        partials = part_of(pool, n_staged + n_sums, PARTIAL_FLOATS, float32)

        n_rows, n_cols = int32(w[words.N_ROWS]), int32(w[words.N_COLS])
        n_units, block = int32(w[words.N_UNITS]), int32(cuda.blockIdx.x)
        n_fewer, n_more = int32(w[words.GROUPS_A_BLOCK]), int32(w[words.GROUPS_LEFT])
        panel = int32(block * n_fewer + min(block, n_more))
        end_group = int32(panel + n_fewer + (1 if block < n_more else 0))
        if panel == end_group:
            cuda.syncthreads()  # every instruction is one: the next one's words are there
            return
        warp, mine = int32(cuda.threadIdx.x >> 5), int32(cuda.threadIdx.x)
        first_panel, stage = panel, int32(0)
        panel_end = int32(min(panel + w[words.PANEL_GROUPS], end_group))
        # The first two items' weights, before all that they do not depend on.
        first_span, n_spans, down, right = spans_of(w, stage)
        # Tuples are made where they are used: LLVM does not end where a loop carries them.
        items = Items(panel, panel_end, first_span, n_spans, down, right)
        group, span = first_item(w, items, stage, warp)
        next_group, next_span = next_item(items, group, span)
        load(w, n_rows, n_units, items, group, span, a_words, a_high, a_packed)
        load(w, n_rows, n_units, items, next_group, next_span, b_words, b_high, b_packed)

        x = array_at(w[words.X], (_UNSEEN,), uint32)
        norm = array_at(w[words.NORM], (_UNSEEN,), float32)
        epoch = epoch_of(step, n_instructions, w[words.WRITER])
        x_epoch = epoch_of(step, n_instructions, w[words.X_WRITER])
        old_epoch = epoch_of(step, n_instructions, w[words.OLD_WRITER])
        # Which result of a panel is this thread's: those of a pair are neighbours.
        s, is_second = int32((mine >> 1) % n_seqs), int32(mine & 1)
        my_pair = int32(mine // (2 * n_seqs))
        my_group, my_row = int32(my_pair // half), int32(my_pair % half + is_second * half)
        my_partial = int32(my_group * n_results + my_row * n_seqs + s)

        thread_best, thread_top, thread_mass = int64(-1), float32(LOWEST), float32(0)
        total, is_first = float32(0), True
        first, jump, is_mine = int32(0), int32(0), int32(0)  # of the pair; see epilogue.py
        bias_first, bias_second = float32(0), float32(0)
        old_first, old_second = float32(0), float32(0)
        while True:
            if is_first or w[words.N_STAGES] > 1:
                first_col = int32(stage * int32(w[words.STAGE_COLS]))
                n_quads = int32(min(int32(w[words.STAGE_COLS]), int32(n_cols - first_col)) >> 2)
                prepare(norm, w[words.NORM] != 0, first_col, n_quads, staged)
            if stage == 0:
                first, jump = find_pair(w, n_rows, int32(panel * half + my_pair))
                is_mine = int32(0)
                if is_second == 0 and panel + my_group < panel_end and first < n_rows:
                    is_mine = int32(1)
                bias_first, bias_second, old_first, old_second = extras(
                    w, Pair(first, jump, s, is_mine), slot_pos, old_epoch
                )
            if is_first or w[words.N_STAGES] > 1:
                first_col = int32(stage * int32(w[words.STAGE_COLS]))
                n_quads = int32(min(int32(w[words.STAGE_COLS]), int32(n_cols - first_col)) >> 2)
                for t in range(n_seqs):
                    at = int32(t * n_cols + first_col)
                    share = take(x, x_epoch, at, n_quads, t, staged, sums)
                    if w[words.NORM] != 0 and panel == first_panel:
                        share = warp_sum(share)
                        if cuda.threadIdx.x & 31 == 0:
                            here = uint32(t * N_WARPS + warp)
                            squares[here] = share + (float32(0) if is_first else squares[here])
            cuda.syncthreads()
            items = Items(panel, panel_end, first_span, n_spans, down, right)
            while group < panel_end:
                do_item(
                    items, n_units, group, span, a_words, a_high, a_packed, staged, sums, partials
                )
                group, span = next_item(items, next_group, next_span)
                load(w, n_rows, n_units, items, group, span, a_words, a_high, a_packed)
                if next_group < panel_end:
                    do_item(
                        items, n_units, next_group, next_span, b_words, b_high, b_packed,
                        staged, sums, partials,
                    )  # fmt: skip
                    next_group, next_span = next_item(items, group, span)
                    load(
                        w, n_rows, n_units, items, next_group, next_span,
                        b_words, b_high, b_packed,
                    )  # fmt: skip
            scale = float32(result_scale) * norm_scale(w, n_cols, s, squares)
            done_groups, done_spans = int32(panel_end - panel), n_spans
            # On to the next segment, if there is one: its first weights.
            is_first, stage = False, int32(stage + 1)
            if stage == w[words.N_STAGES]:
                stage, panel = int32(0), panel_end
                panel_end = int32(min(panel + w[words.PANEL_GROUPS], end_group))
            if panel < end_group:
                first_span, n_spans, down, right = spans_of(w, stage)
                ahead = Items(panel, panel_end, first_span, n_spans, down, right)
                group, span = first_item(w, ahead, stage, warp)
                next_group, next_span = next_item(ahead, group, span)
                load(w, n_rows, n_units, ahead, group, span, a_words, a_high, a_packed)
                load(w, n_rows, n_units, ahead, next_group, next_span, b_words, b_high, b_packed)
            cuda.syncthreads()  # the partial results are there
            if my_group < done_groups:
                total += sum_spans(partials, my_partial, int32(done_groups * n_results), done_spans)
            if stage == 0:
                pair = Pair(first, jump, s, is_mine)
                extra = Extras(bias_first, bias_second, old_first, old_second)
                thread_best, thread_top, thread_mass = finish(
                    w, total * scale, pair, extra, n_rows, epoch,
                    thread_best, thread_top, thread_mass,
                )  # fmt: skip
                total = float32(0)
            if panel == end_group:
                break
        if w[words.KIND] == words.LOGITS:
            gather(w, thread_best, thread_top, thread_mass, pool)

    return product
