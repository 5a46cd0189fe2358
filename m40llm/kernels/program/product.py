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
    span_cols,
)
from m40llm.kernels.program.rows import pair_of
from m40llm.kernels.program.stage import prepare_of, take_of
from m40llm.kernels.reduce import FULL_MASK, WARP_SIZE, warp_sum
from m40llm.kernels.unit_product import load_unit, multiply_unit
from m40llm.kernels.unpack import LANES, RESULT_SCALE
from m40llm.kernels.views import array_at, part_of


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
def next_item(items: Any, group: Any, span: Any) -> Any:
    """(group, span) of the warp's next item; span counts from the segment's first."""
    group, span = int32(group + items.down), int32(span + items.right)
    if span >= items.n_spans:
        group, span = int32(group + 1), int32(span - items.n_spans)
    return group, span


@cache
def _load_of(form: Form, type: GGMLType) -> Any:
    """load(w, n_rows, n_units, items, group, span, now, high, packed): a lane's part of an
    item, if there is one."""
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
            for r in range(half):
                first, jump = find_pair(w, n_rows, group * half + r)
                rows[r] = int64(min(first, n_rows - 1))  # beyond: multiplied, not stored
                rows[half + r] = int64(min(first + jump, n_rows - 1))
            quants = array_at(w[words.QUANTS], (n_rows, w[words.QUANT_WORDS]), uint32)
            highs = array_at(w[words.HIGHS], (n_rows, w[words.HIGH_WORDS]), uint32)
            scales = array_at(w[words.SCALES], (n_rows, w[words.SCALE_WORDS]), scale_kind)
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
        if w[words.NORM] == 0:
            return float32(1)
        total = float32(0)
        for warp in range(N_WARPS):
            total += squares[uint32(s * N_WARPS + warp)]
        eps = uint_as_float(uint32(w[words.EPS]))
        return float32(1) / math.sqrt(total / float32(n_cols) + eps)

    return norm_scale


@cache
def product_of(form: Form, type: GGMLType) -> Any:
    """product(w, step, n_instructions, slot_pos, pool, squares): the instruction w."""
    n_seqs, n = form.n_seqs, rows_a_warp(type, form.n_seqs)
    half, n_results, lane_cols, cols_a_span = (
        n // 2,
        n * n_seqs,
        LANES[type].n_cols,
        span_cols(type),
    )
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
        sum_sq = cuda.local.array(n_seqs, float32)
        staged = part_of(pool, 0, n_staged, float32)
        sums = part_of(pool, n_staged, n_sums, float32)
        partials = part_of(pool, n_staged + n_sums, PARTIAL_FLOATS, float32)

        n_rows, n_cols = int32(w[words.N_ROWS]), int32(w[words.N_COLS])
        stage_cols = int32(w[words.STAGE_COLS])
        panel_groups, n_units = int32(w[words.PANEL_GROUPS]), int32(n_cols // lane_cols)
        n_groups = uint32(n_rows + n - 1) // uint32(n)
        first_group = int32(uint32(cuda.blockIdx.x) * n_groups // uint32(cuda.gridDim.x))
        end_group = int32(uint32(cuda.blockIdx.x + 1) * n_groups // uint32(cuda.gridDim.x))
        if first_group == end_group:
            cuda.syncthreads()  # every instruction is one: the next one's words are there
            return
        x = array_at(w[words.X], (n_seqs * n_cols * 2,), uint32)
        norm = array_at(w[words.NORM], (n_cols,), float32)
        epoch = epoch_of(step, n_instructions, w[words.WRITER])
        x_epoch = epoch_of(step, n_instructions, w[words.X_WRITER])
        old_epoch = epoch_of(step, n_instructions, w[words.OLD_WRITER])
        warp = int32(cuda.threadIdx.x >> 5)
        # Which result of a panel is this thread's: those of a pair are neighbours.
        mine = int32(cuda.threadIdx.x)
        s, is_second = int32((mine >> 1) % n_seqs), int32(mine & 1)
        my_pair = int32(mine // (2 * n_seqs))
        my_group, my_row = int32(my_pair // half), int32(my_pair % half + is_second * half)

        thread_best, thread_top, thread_mass = int64(-1), float32(LOWEST), float32(0)
        total = float32(0)
        first, jump, is_mine = int32(0), int32(0), int32(0)  # of the pair; see epilogue.py
        bias_first, bias_second = float32(0), float32(0)
        old_first, old_second = float32(0), float32(0)
        panel, stage = first_group, int32(0)
        panel_end = int32(min(panel + panel_groups, end_group))
        done_groups, done_spans = int32(0), int32(0)  # of the segment before
        n_panels = uint32(end_group - first_group + panel_groups - 1) // uint32(panel_groups)
        n_segments = int32(n_panels * uint32(w[words.N_STAGES]))
        for segment in range(n_segments + 1):
            is_first, is_last = segment == 0, segment == n_segments
            # The first two items' weights, before all that they do not depend on.
            first_col = int32(stage * stage_cols)
            n_cols_here = int32(min(stage_cols, n_cols - first_col))
            n_spans = int32((n_cols_here + cols_a_span - 1) // cols_a_span)
            down = int32(uint32(N_WARPS) // uint32(n_spans))
            items = Items(
                panel, panel_end, int32(first_col // cols_a_span), n_spans,
                down, int32(N_WARPS - down * n_spans),
            )  # fmt: skip
            down = int32(uint32(warp) // uint32(n_spans))
            group, span = int32(panel + down), int32(warp - down * n_spans)
            next_group, next_span = next_item(items, group, span)
            if not is_last:
                load(w, n_rows, n_units, items, group, span, a_words, a_high, a_packed)
                load(
                    w, n_rows, n_units, items, next_group, next_span,
                    b_words, b_high, b_packed,
                )  # fmt: skip
            if not is_first:
                cuda.syncthreads()  # the partial results of the segment before are there
                if my_group < done_groups:
                    for other in range(done_spans):
                        at = (other * done_groups + my_group) * n_results
                        total += partials[uint32(at + my_row * n_seqs + s)]
                if is_last or stage == 0:
                    result = total * (float32(result_scale) * norm_scale(w, n_cols, s, squares))
                    # Tuples are made here: LLVM does not end where a loop carries them.
                    pair = Pair(first, jump, s, is_mine)
                    extra = Extras(bias_first, bias_second, old_first, old_second)
                    thread_best, thread_top, thread_mass = finish(
                        w, result, pair, extra, n_rows, epoch,
                        thread_best, thread_top, thread_mass,
                    )  # fmt: skip
                    total = float32(0)
            if is_last:
                break
            if is_first or w[words.N_STAGES] > 1:
                prepare(norm, w[words.NORM] != 0, first_col, n_cols_here >> 2, staged)
            if stage == 0:
                first, jump = find_pair(w, n_rows, panel * half + my_pair)
                is_mine = int32(0)
                if is_second == 0 and panel + my_group < panel_end and first < n_rows:
                    is_mine = int32(1)
                bias_first, bias_second, old_first, old_second = extras(
                    w, Pair(first, jump, s, is_mine), slot_pos, old_epoch
                )
            if is_first or w[words.N_STAGES] > 1:
                for t in range(n_seqs):
                    sum_sq[t] = float32(0)
                take(x, x_epoch, n_cols, first_col, n_cols_here >> 2, staged, sums, sum_sq)
                if w[words.NORM] != 0 and panel == first_group:
                    for t in range(n_seqs):
                        share = warp_sum(sum_sq[t])
                        if cuda.threadIdx.x & 31 == 0:
                            at = uint32(t * N_WARPS + warp)
                            squares[at] = share + (float32(0) if is_first else squares[at])
            cuda.syncthreads()
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
            # On to the next segment.
            done_groups, done_spans = int32(panel_end - panel), n_spans
            stage = int32(stage + 1)
            if stage == w[words.N_STAGES]:
                stage, panel = int32(0), panel_end
                panel_end = int32(min(panel + panel_groups, end_group))
        if w[words.KIND] == words.LOGITS:
            gather(w, thread_best, thread_top, thread_mass, pool)

    return product
