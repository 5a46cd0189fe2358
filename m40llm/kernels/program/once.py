"""A product of a block's rows in one go, all columns of x in shared memory: most products.

The order of things is what an H100 asks for; LOG.md has the clocks.

- A warp asks for its first span's weights, then waits for the block's other warps and for the
  results of the instruction before (pending.py).
- x is asked for right behind. What a multiprocessor loads seems to come in the order in which it
  asked, so the second span's weights are held back until that first look has come.
- Nothing from there to the first span's multiplication (spans.py) may wait for a load whose use is
  in another basic block: no loop that makes one, no register of one that is written again.

over the size law: `once` is one function so that two spans' weights stay in registers.
"""

from functools import cache
from typing import Any

from gguf import GGMLQuantizationType as GGMLType
from numba import cuda, float32, int32, uint32

from m40llm.kernels.program import words
from m40llm.kernels.program.code import ask_next_norm, epoch_of, put_word, word_of
from m40llm.kernels.program.epilogue import (
    extras_of,
    factor_of,
    find_of,
    my_pair,
    read_extras,
    write_extras,
)
from m40llm.kernels.program.form import (
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
)
from m40llm.kernels.program.pending import keep, keep_scale, pending_of
from m40llm.kernels.program.rows import result_of
from m40llm.kernels.program.spans import loading_of
from m40llm.kernels.program.stage import n_shares, norm_scale, staging_of, sum_squares_of
from m40llm.kernels.views import UNSEEN, array_at, part_of


@cache
def once_of(form: Form, type: GGMLType) -> Any:
    """once(code, first_group, end_group, slot_pos, pool, squares, n_pending): a product of one
    segment, but for LOGITS -> how many results it leaves to the next instruction."""
    n_seqs, n, n_asked = form.n_seqs, rows_a_lane(type, form.n_seqs), asked_quads(form.n_seqs)
    pool_of, n_own, sum_squares = Pool(type, n_seqs), n_shares(n_seqs), sum_squares_of(n_seqs)
    n_staged, n_sums, span_quads = pool_of.n_staged, pool_of.n_sums, span_cols(type, n_seqs) // 4
    n_results = group_rows(type, n_seqs) * n_seqs
    load, load_next, do_spans = loading_of(form, type)
    load_norm, ask_x, take, put_squares = staging_of(type, n_seqs)
    find, extras, result_at = find_of(form, type), extras_of(form), result_of(form, type)
    factor, (finish_now, finish_pending) = factor_of(form, type), pending_of(form)

    @cuda.jit(device=True, forceinline=True)
    def once(
        code: Any, first_group: Any, end_group: Any, slot_pos: Any,
        pool: Any, squares: Any, n_pending: Any,
    ) -> Any:  # fmt: skip
        w = code.this
        norms = cuda.local.array((NORM_QUADS, 4), float32)
        asked = cuda.local.array((n_asked, 8), uint32)
        shares = cuda.local.array(n_own, float32)
        noted = cuda.local.array(7, uint32)
        now = cuda.local.array((n, 4), uint32)
        now_high = cuda.local.array((n, 2), uint32)
        now_packed = cuda.local.array((n, 4), uint32)
        then = cuda.local.array((n, 4), uint32)
        then_high = cuda.local.array((n, 2), uint32)
        then_packed = cuda.local.array((n, 4), uint32)
        staged = part_of(pool, 0, n_staged, float32)
        sums = part_of(pool, n_staged, n_sums, float32)
        partials = part_of(pool, PARTIALS_AT, PARTIAL_FLOATS, float32)
        n_rows, n_units = word_of(w, words.N_ROWS), word_of(w, words.N_UNITS)
        n_left = int32((end_group - first_group) * n_results)
        warp = int32(uint32(cuda.threadIdx.x) >> uint32(5))

        items = items_of(w, first_group, end_group, int32(0), True)
        group, chunk, span = first_span_of(w, items, True, warp)
        next_group, next_chunk, next_span = next_span_of(items, group, chunk, span)
        mine_first = int32(min(group, int32(end_group - 1)))
        load(w, n_rows, n_units, items, mine_first, span, now, now_high, now_packed)
        n_quads = int32(uint32(word_of(w, words.N_COLS)) >> uint32(2))
        is_normed = w[words.NORM] != 0
        n_padded = int32(items.n_spans * span_quads)
        load_norm(w, int32(0), n_quads, norms)
        number, is_second = my_pair()
        pair = find(w, n_rows, number, is_second, first_group, end_group)
        if n_pending == 0:  # who has nothing to finish may ask at once
            write_extras(noted, extras(w, pair, slot_pos))
        finish_pending(code, n_pending, pool)
        x_epoch = epoch_of(code, w[words.X_WRITER])
        x, x_cols = array_at(w[words.X], (UNSEEN,), uint32), word_of(w, words.X_COLS)
        ask_x(x, x_cols, int32(0), 0, n_quads, asked)
        if n_pending != 0:  # what was in OUT may have been finished only now
            write_extras(noted, extras(w, pair, slot_pos))
        extra = read_extras(noted)
        put_word(code)
        _, _, _, part, second = result_at(number)
        keep(code, pool, pair, extra, n_left, part, second)
        # The second span's weights are not asked for before the first look has come.
        zero = uint32(word_of(w, words.ZERO))
        held_back = int32(asked[0, 1] & zero)
        next_group = int32(next_group + held_back)
        load_next(
            w, n_rows, n_units, items, mine_first, span, next_group, next_span,
            then, then_high, then_packed,
        )  # fmt: skip

        ask_next_norm(code)
        take(
            x, x_epoch, x_cols, int32(0), n_quads, n_padded,
            norms, asked, staged, sums, shares,
        )  # fmt: skip
        if is_normed:
            put_squares(shares, n_quads, squares, False)
        cuda.syncthreads()
        do_spans(
            w, n_rows, n_units, items, group, chunk, span, next_group, next_chunk, next_span,
            now, now_high, now_packed, then, then_high, then_packed,
            zero, staged, sums, partials, False,
        )  # fmt: skip
        if is_second == 0 and int32(2 * number) < n_left:
            scale = factor(w)
            if is_normed:
                scale *= norm_scale(w, sum_squares(squares, pair.s))
            keep_scale(pool, number, scale)
        if word_of(w, words.LEAVES) != 0:
            return n_left
        finish_now(code, w, n_left, pool)
        return int32(0)

    return once
