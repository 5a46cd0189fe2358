"""A product of many sequences: neighbouring blocks have the same rows, and each a slice of columns.

With eight sequences 1,024 columns of x fill shared memory. If a block multiplied all columns of its
rows, all blocks would read all of x, and wait for it 14 times for 14,336 columns: more bytes than
the weights have. A slice is one stage of x, or a few.

Whoever ends an item gives its results to the exchange, as one of N_PARTS parts of each. When a
block has multiplied all its rows it finishes its share of them: it waits for all parts of a result,
and adds them in their order. So all blocks of a slice are done at about the same time, and no panel
of rows waits for another.

Two buffers of parts take turns from product to product. Who gives a part has taken x; a number of x
is the result of all of what came before, so all parts of the product before the last one have been
read.

over the size law: `sliced` is one function so that two spans' weights stay in registers.
"""

from functools import cache
from typing import Any, Final

from gguf import GGMLQuantizationType as GGMLType
from numba import cuda, float32, int32, int64, uint32

from m40llm.kernels.bits import uint_as_float
from m40llm.kernels.intrinsics import load_uint4_volatile
from m40llm.kernels.program import words
from m40llm.kernels.program.code import ask_next_norm, epoch_of, put_word, word_of
from m40llm.kernels.program.epilogue import (
    LOWEST,
    Pair,
    extras_of,
    factor_of,
    finish_of,
)
from m40llm.kernels.program.exchange import give1, take4
from m40llm.kernels.program.form import (
    MAX_SLICES,
    N_THREADS,
    N_WARPS,
    NORM_QUADS,
    Form,
    Pool,
    asked_quads,
    group_rows,
    max_stage_cols,
    rows_a_lane,
    span_cols,
)
from m40llm.kernels.program.items import Items, next_span_of
from m40llm.kernels.program.logits import gather_of, put_logits_of
from m40llm.kernels.program.rows import pair_of
from m40llm.kernels.program.spans import loading_of
from m40llm.kernels.program.stage import n_shares, norm_scale, staging_of, sum_squares_of
from m40llm.kernels.views import UNSEEN, array_at, part_of

_PARTS_IN_FLIGHT: Final = 4


@cache
def _squares_of(n_seqs: int) -> Any:
    """give_squares(w, slice, n_slices, squares, epoch): the slice's sums of squares, to all blocks
    with these rows; scale_of(w, s, epoch) -> 1 / sqrt(mean x^2 + eps), or 1 without a norm."""
    sum_squares = sum_squares_of(n_seqs)

    @cuda.jit(device=True, forceinline=True)
    def place(w: Any, s: Any) -> Any:
        rows = int32(int32(cuda.blockIdx.x) >> word_of(w, words.SLICE_SHIFT))
        return int32((rows * n_seqs + s) * MAX_SLICES)

    @cuda.jit(device=True, forceinline=True)
    def give_squares(w: Any, slice: Any, n_slices: Any, squares: Any, epoch: Any) -> None:
        s = int32(cuda.threadIdx.x)
        if s < n_seqs:
            parts = array_at(w[words.PART_SQUARES], (UNSEEN,), uint32)
            give1(parts, int32(place(w, s) + slice), sum_squares(squares, s), epoch)
            if slice == 0:
                for absent in range(n_slices, MAX_SLICES):
                    give1(parts, int32(place(w, s) + absent), float32(0), epoch)

    @cuda.jit(device=True, forceinline=True)
    def scale_of(w: Any, s: Any, epoch: Any) -> Any:
        scale = float32(1)
        if w[words.NORM] != 0:
            parts = array_at(w[words.PART_SQUARES], (UNSEEN,), uint32)
            a, b, c, d = take4(parts, place(w, s), epoch)
            scale = norm_scale(w, (a + b) + (c + d))
        return scale

    return give_squares, scale_of


@cuda.jit(device=True, forceinline=True)
def _sum_parts(parts: Any, at: Any, stride: Any, n_parts: Any, epoch: Any) -> Any:
    """A pair of results: the sums of the two numbers at parts[at], parts[at + stride], ..."""
    seen = cuda.local.array((_PARTS_IN_FLIGHT, 4), uint32)
    first, second, part = float32(0), float32(0), int32(0)
    while part < n_parts:
        for i in range(_PARTS_IN_FLIGHT):
            here = int64(at) + int64(min(int32(part + i), int32(n_parts - 1))) * stride
            seen[i, 0], seen[i, 1], seen[i, 2], seen[i, 3] = load_uint4_volatile(parts, here)
        for i in range(_PARTS_IN_FLIGHT):
            if part + i < n_parts:
                here = int64(at) + int64(part + i) * stride
                while seen[i, 1] != epoch or seen[i, 3] != epoch:
                    seen[i, 0], seen[i, 1], seen[i, 2], seen[i, 3] = load_uint4_volatile(
                        parts, here
                    )
                first += uint_as_float(seen[i, 0])
                second += uint_as_float(seen[i, 2])
        part += int32(_PARTS_IN_FLIGHT)
    return first, second


@cache
def _merge_of(form: Form, type: GGMLType) -> Any:
    """merge(code, slot_pos, pool, first_group, end_group, n_groups, epoch): the results of these
    groups, of the matrix's n_groups, once all their parts have come."""
    n_seqs, find_pair, extras = form.n_seqs, pair_of(form), extras_of(form)
    finish = finish_of(form)
    put_logits, gather, factor = put_logits_of(form), gather_of(form), factor_of(form, type)
    pairs_a_group, (_, scale_of) = group_rows(type, n_seqs) // 2, _squares_of(n_seqs)

    @cuda.jit(device=True, forceinline=True)
    def merge(
        code: Any, slot_pos: Any, pool: Any, first_group: Any, end_group: Any, n_groups: Any,
        epoch: Any,
    ) -> None:  # fmt: skip
        w = code.this
        parts = array_at(w[words.PARTS], (UNSEEN,), uint32)
        n_rows, n_parts = word_of(w, words.N_ROWS), word_of(w, words.N_PARTS)
        stride = int32(n_groups * (pairs_a_group * n_seqs * 4))
        first_pair = int32(first_group * pairs_a_group)
        n_pairs = int32((end_group - first_group) * (pairs_a_group * n_seqs))
        best, top, mass = int64(-1), float32(LOWEST), float32(0)
        number, scale = int32(cuda.threadIdx.x), factor(w)
        if number < n_pairs:
            scale *= scale_of(w, int32(uint32(number) % uint32(n_seqs)), epoch)
        while number < n_pairs:
            s, pair = uint32(number) % uint32(n_seqs), uint32(number) // uint32(n_seqs)
            row, jump = find_pair(w, n_rows, int32(first_pair + int32(pair)))
            found = Pair(row, jump, int32(s), int32(1 if row < n_rows else 0))
            extra = extras(w, found, slot_pos)
            at = int32((first_pair * n_seqs + number) * 4)
            first, second = _sum_parts(parts, at, stride, n_parts, epoch)
            first, second = first * scale, second * scale
            if word_of(w, words.KIND) == words.LOGITS:
                best, top, mass = put_logits(
                    w, first, second, found, extra, n_rows, best, top, mass
                )  # fmt: skip
            else:
                old_epoch = epoch_of(code, w[words.OLD_WRITER])
                finish(
                    w, found, extra, first, second, old_epoch, epoch_of(code, w[words.WRITER])
                )  # fmt: skip
            number += int32(N_THREADS)
        if word_of(w, words.KIND) == words.LOGITS:
            gather(w, best, top, mass, pool)

    return merge


@cache
def sliced_of(form: Form, type: GGMLType) -> Any:
    """sliced(code, first_group, end_group, slot_pos, pool, squares, n_pending) -> 0, the results
    that it leaves to the next instruction."""
    n_seqs, n, n_asked = form.n_seqs, rows_a_lane(type, form.n_seqs), asked_quads(form.n_seqs)
    pool_of, n_own, stage_cols = Pool(type, n_seqs), n_shares(n_seqs), max_stage_cols(n_seqs)
    n_staged, n_sums, span = pool_of.n_staged, pool_of.n_sums, span_cols(type, n_seqs)
    load, load_next, do_spans = loading_of(form, type)
    load_norm, ask_x, take, put_squares = staging_of(type, n_seqs)
    give_squares, _ = _squares_of(n_seqs)
    group_words, merge = group_rows(type, n_seqs) * n_seqs * 2, _merge_of(form, type)

    @cuda.jit(device=True, forceinline=True)
    def sliced(
        code: Any, first_group: Any, end_group: Any, slot_pos: Any,
        pool: Any, squares: Any, n_pending: Any,
    ) -> Any:  # fmt: skip
        w = code.this
        norms = cuda.local.array((NORM_QUADS, 4), float32)
        asked = cuda.local.array((n_asked, 8), uint32)
        shares = cuda.local.array(n_own, float32)
        now = cuda.local.array((n, 4), uint32)
        now_high = cuda.local.array((n, 2), uint32)
        now_packed = cuda.local.array((n, 4), uint32)
        then = cuda.local.array((n, 4), uint32)
        then_high = cuda.local.array((n, 2), uint32)
        then_packed = cuda.local.array((n, 4), uint32)
        staged = part_of(pool, 0, n_staged, float32)
        sums = part_of(pool, n_staged, n_sums, float32)
        n_rows, n_units = word_of(w, words.N_ROWS), word_of(w, words.N_UNITS)
        x, x_cols = array_at(w[words.X], (UNSEEN,), uint32), word_of(w, words.X_COLS)
        x_epoch, epoch = epoch_of(code, w[words.X_WRITER]), epoch_of(code, w[words.PC])
        n_slices = int32(1 << w[words.SLICE_SHIFT])
        slice = int32(int32(cuda.blockIdx.x) & int32(n_slices - 1))
        first_col = int32(slice * word_of(w, words.SLICE_COLS))
        end_col = int32(
            min(int32(first_col + word_of(w, words.SLICE_COLS)), word_of(w, words.N_COLS))
        )
        part, warp = int32(slice * word_of(w, words.N_STAGES)), int32(cuda.threadIdx.x >> 5)
        n_all = int32(word_of(w, words.GROUPS_A_BLOCK) * (int32(cuda.gridDim.x) // n_slices))
        n_all += word_of(w, words.GROUPS_LEFT)
        put_word(code)
        is_first = True
        while first_col < end_col:
            n_cols = int32(min(int32(end_col - first_col), int32(stage_cols)))
            n_quads, n_spans = int32(n_cols >> 2), int32(uint32(n_cols + span - 1) // uint32(span))
            first_span = int32(uint32(first_col) // uint32(span))
            items = Items(
                first_group, end_group, first_span, n_spans, n_spans,
                int32(1), int32(N_WARPS), int32(0),
            )  # fmt: skip
            group, chunk, at = int32(first_group + warp), int32(0), int32(0)
            next_group, next_chunk, next_at = next_span_of(items, group, chunk, at)
            mine_first = int32(min(group, int32(end_group - 1)))
            load(w, n_rows, n_units, items, mine_first, at, now, now_high, now_packed)
            load_next(
                w, n_rows, n_units, items, mine_first, at, next_group, next_at,
                then, then_high, then_packed,
            )  # fmt: skip
            load_norm(w, first_col, n_quads, norms)
            ask_x(x, x_cols, first_col, 0, n_quads, asked)
            cuda.syncthreads()  # all are done with what was staged before
            take(
                x, x_epoch, x_cols, first_col, n_quads, int32(n_spans * (span // 4)),
                norms, asked, staged, sums, shares,
            )  # fmt: skip
            if w[words.NORM] != 0:
                put_squares(shares, n_quads, squares, not is_first)
            cuda.syncthreads()
            if w[words.NORM] != 0 and first_col + stage_cols >= end_col:
                give_squares(w, slice, n_slices, squares, epoch)
            there = w[words.PARTS] + int64(part) * int64(n_all * group_words) * 4
            do_spans(
                w, n_rows, n_units, items, group, chunk, at, next_group, next_chunk, next_at,
                now, now_high, now_packed, then, then_high, then_packed,
                uint32(word_of(w, words.ZERO)), staged, sums,
                array_at(there, (UNSEEN,), uint32), epoch,
            )  # fmt: skip
            is_first = False
            first_col, part = int32(first_col + stage_cols), int32(part + 1)
        ask_next_norm(code)
        # Its share of these rows: the slices' blocks finish a part of them each.
        n_groups, shift = int32(end_group - first_group), word_of(w, words.SLICE_SHIFT)
        merge(
            code, slot_pos, pool,
            int32(first_group + (int32(n_groups * slice) >> shift)),
            int32(first_group + (int32(n_groups * int32(slice + 1)) >> shift)),
            n_all, epoch,
        )  # fmt: skip
        return int32(0)

    return sliced
