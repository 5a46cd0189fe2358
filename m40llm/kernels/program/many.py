"""A product in segments: rows a panel at a time, columns of x a stage at a time; and LOGITS.

All stages of a panel are multiplied one after another, into the same partial results; then its
results are finished, while the next panel's weights are on their way. With one stage x stays where
it is for all panels.

over the size law: `many` is one function so that two spans' weights stay in registers.
"""

from functools import cache
from typing import Any

from gguf import GGMLQuantizationType as GGMLType
from numba import cuda, float32, int32, int64, uint32

from m40llm.kernels.program import words
from m40llm.kernels.program.code import ask_next_norm, epoch_of, put_word, word_of
from m40llm.kernels.program.epilogue import (
    LOWEST,
    extras_of,
    factor_of,
    find_of,
    finish_of,
    my_pair,
    warp_has_pairs,
)
from m40llm.kernels.program.form import (
    N_THREADS,
    NORM_QUADS,
    PARTIAL_FLOATS,
    PARTIALS_AT,
    Form,
    Pool,
    asked_quads,
    group_rows,
    rows_a_lane,
    span_cols,
)
from m40llm.kernels.program.items import (
    first_span_of,
    items_of,
    next_span_of,
    sum_chunks,
)
from m40llm.kernels.program.logits import gather_of, put_logits_of
from m40llm.kernels.program.pending import pending_of
from m40llm.kernels.program.rows import result_of
from m40llm.kernels.program.spans import loading_of
from m40llm.kernels.program.stage import n_shares, norm_scale, staging_of, sum_squares_of
from m40llm.kernels.reduce import FULL_MASK
from m40llm.kernels.views import UNSEEN, array_at, part_of


@cache
def many_of(form: Form, type: GGMLType) -> Any:
    """many(code, first_group, end_group, slot_pos, pool, squares, n_pending): a product of any
    number of segments -> 0, the results that it leaves to the next instruction."""
    n_seqs, n, n_asked = form.n_seqs, rows_a_lane(type, form.n_seqs), asked_quads(form.n_seqs)
    pool_of, n_own, sum_squares = Pool(type, n_seqs), n_shares(n_seqs), sum_squares_of(n_seqs)
    n_staged, n_sums, span_quads = pool_of.n_staged, pool_of.n_sums, span_cols(type, n_seqs) // 4
    n_results = group_rows(type, n_seqs) * n_seqs
    load, load_next, do_spans = loading_of(form, type)
    load_norm, ask_x, take, put_squares = staging_of(type, n_seqs)
    find, extras, result_at = find_of(form, type), extras_of(form), result_of(form, type)
    put_logits, gather, factor = put_logits_of(form), gather_of(form), factor_of(form, type)
    finish, (_, finish_pending) = finish_of(form), pending_of(form)

    @cuda.jit(device=True, forceinline=True)
    def many(
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
        partials = part_of(pool, PARTIALS_AT, PARTIAL_FLOATS, float32)
        n_rows, n_cols = word_of(w, words.N_ROWS), word_of(w, words.N_COLS)
        n_units, warp = word_of(w, words.N_UNITS), int32(cuda.threadIdx.x >> 5)
        x, x_cols = array_at(w[words.X], (UNSEEN,), uint32), word_of(w, words.X_COLS)
        x_epoch = epoch_of(code, w[words.X_WRITER])
        my_number, is_second = my_pair()
        thread_best, thread_top, thread_mass = int64(-1), float32(LOWEST), float32(0)
        panel, stage, done_panel, scale = int32(first_group), int32(0), int32(0), float32(1)
        is_first = True
        while True:
            panel_end = int32(min(panel + w[words.PANEL_GROUPS], end_group))
            group, chunk, span = panel, int32(0), int32(0)
            next_group, next_chunk, next_span, n_spans = panel, int32(0), int32(0), int32(0)
            if panel < end_group:
                # Tuples are made where they are used: LLVM does not end where a loop carries them.
                is_last = int32(stage + 1) == word_of(w, words.N_STAGES)
                ahead = items_of(w, panel, panel_end, stage, is_last)
                n_spans = ahead.n_spans
                group, chunk, span = first_span_of(w, ahead, is_last, warp)
                next_group, next_chunk, next_span = next_span_of(ahead, group, chunk, span)
                mine_first = int32(min(group, int32(panel_end - 1)))
                load(w, n_rows, n_units, ahead, mine_first, span, now, now_high, now_packed)
                load_next(
                    w, n_rows, n_units, ahead, mine_first, span, next_group, next_span,
                    then, then_high, then_packed,
                )  # fmt: skip
            if is_first:
                finish_pending(code, n_pending, pool)
                put_word(code)
            elif stage == 0:  # the panel before is done
                cuda.syncthreads()  # its partial results are there
                n_done = int32((panel - done_panel) * n_results)
                n_chunks = word_of(w, words.STAGE_CHUNKS)
                first = int32(0)
                while warp_has_pairs(int32(n_done - first)):
                    number = int32(my_number + (first >> 1))
                    result = float32(0)
                    if 2 * number < n_done:
                        _, _, _, part, second = result_at(number)
                        result = scale * sum_chunks(
                            partials, second if is_second != 0 else part, n_done, n_chunks
                        )
                    pair = find(w, n_rows, number, is_second, done_panel, panel)
                    extra = extras(w, pair, slot_pos)
                    other = cuda.shfl_xor_sync(FULL_MASK, result, 1)
                    if word_of(w, words.KIND) == words.LOGITS:
                        thread_best, thread_top, thread_mass = put_logits(
                            w, result, other, pair, extra, n_rows,
                            thread_best, thread_top, thread_mass,
                        )  # fmt: skip
                    else:
                        old_epoch = epoch_of(code, w[words.OLD_WRITER])
                        epoch = epoch_of(code, w[words.WRITER])
                        finish(w, pair, extra, result, other, old_epoch, epoch)
                    first += int32(N_THREADS)
                if panel == end_group:
                    break
            if is_first or word_of(w, words.N_STAGES) > 1:
                first_col = int32(stage * word_of(w, words.STAGE_COLS))
                n_quads = int32(min(word_of(w, words.STAGE_COLS), int32(n_cols - first_col)) >> 2)
                n_padded = int32(n_spans * span_quads)
                load_norm(w, first_col, n_quads, norms)
                ask_x(x, x_cols, first_col, 0, n_quads, asked)
                if not is_first:
                    cuda.syncthreads()  # all are done with the stage before
                take(
                    x, x_epoch, x_cols, first_col, n_quads, n_padded,
                    norms, asked, staged, sums, shares,
                )  # fmt: skip
                if w[words.NORM] != 0 and panel == first_group:
                    put_squares(shares, n_quads, squares, not is_first)
            cuda.syncthreads()
            is_last = int32(stage + 1) == word_of(w, words.N_STAGES)
            items, zero = (
                items_of(w, panel, panel_end, stage, is_last),
                uint32(word_of(w, words.ZERO)),
            )
            do_spans(
                w, n_rows, n_units, items, group, chunk, span, next_group, next_chunk, next_span,
                now, now_high, now_packed, then, then_high, then_packed,
                zero, staged, sums, partials, stage != 0,
            )  # fmt: skip
            is_first, stage = False, int32(stage + 1)
            if stage == word_of(w, words.N_STAGES):
                # Before the barrier: who goes on to the next instruction may write new squares.
                scale = factor(w)
                if w[words.NORM] != 0:
                    s = int32(uint32(my_number) % uint32(n_seqs))
                    scale *= norm_scale(w, sum_squares(squares, s))
                done_panel, panel, stage = panel, panel_end, int32(0)
        ask_next_norm(code)
        if word_of(w, words.KIND) == words.LOGITS:
            gather(w, thread_best, thread_top, thread_mass, pool)
        return int32(0)

    return many
