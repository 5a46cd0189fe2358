"""Matrix x vector as an instruction: the grid shares the rows, a block's warps share its items.

Each block has whole groups of rows (pairs of rows.py). A warp multiplies an item (items.py), adds
over its lanes, and leaves a partial result for each row and sequence in shared memory. A thread
then adds up the partial results of one row and sequence, in the order of the columns. How many
columns an item has depends on how many groups a block has; nothing else depends on the grid.

over the size law: products are functions of one piece so that two spans' weights stay in registers.

once    all rows of the block, all columns of x in shared memory: most products
many    rows a panel at a time, or columns a stage at a time; and LOGITS

The order of things in `once` is what an H100 asks for; LOG.md has the clocks.

- A warp asks for its first span's weights, then waits for the block's other warps and for the
  results of the instruction before (pending.py).
- x is asked for right behind. What a multiprocessor loads seems to come in the order in which it
  asked, so the second span's weights are held back until that first look has come.
- The assembler (of sm_90) counts loads whose use is in another basic block in one scoreboard: who
  waits for one waits for all. So nothing from there to the first span's multiplication may wait for
  such a load: no loop that makes one, no register of one that is written again. A span is
  multiplied before the loop, which begins by waiting.
- In the loop the next span's weights are on their way while one is multiplied. Left to itself the
  assembler keeps both in the same registers and loads after it has multiplied; `copy` with a zero
  that it cannot know prevents that, and so does an unconditional load: a warp without a next span
  loads what it has once more.

What decides between ways through a loop is read from the words each time: a condition in a register
would be the same all through the loop, and LLVM would make a loop for each.
"""

from functools import cache
from typing import Any

from gguf import GGMLQuantizationType as GGMLType
from numba import cuda, float32, int32, int64, uint32

from m40llm.kernels.planes import DENSE
from m40llm.kernels.program import words
from m40llm.kernels.program.code import ask_next_norm, epoch_of, put_word
from m40llm.kernels.program.epilogue import (
    LOWEST,
    Pair,
    extras_of,
    finish,
    gather_of,
    my_pair,
    put_logits_of,
    read_extras,
    warp_has_pairs,
    write_extras,
)
from m40llm.kernels.program.form import (
    IN_FLIGHT,
    N_WARPS,
    PARTIAL_FLOATS,
    PARTIALS_AT,
    Form,
    Pool,
    rows_a_warp,
)
from m40llm.kernels.program.items import (
    copy_of,
    first_span_of,
    items_of,
    load_of,
    next_span_of,
    norm_scale_of,
    share_of,
    span_of,
    sum_chunks,
)
from m40llm.kernels.program.pending import finish_now, finish_pending, keep, keep_scale
from m40llm.kernels.program.rows import pair_of
from m40llm.kernels.program.stage import ask_x, load_norm, take_of
from m40llm.kernels.reduce import warp_sum
from m40llm.kernels.unpack import RESULT_SCALE
from m40llm.kernels.views import UNSEEN, array_at, part_of


@cache
def _mine_of(form: Form, n: int) -> Any:
    """mine() -> (s, is_second, pair, group, partial): which result of a panel is this thread's;
    pair and group count from the panel's first, `partial` is where its first partial result lies.
    n: rows of a group."""
    n_seqs, half = form.n_seqs, n // 2

    @cuda.jit(device=True, forceinline=True)
    def mine() -> Any:
        number, is_second = my_pair()
        s, pair = int32(number % n_seqs), int32(number // n_seqs)
        group, row = int32(pair // half), int32(pair % half + is_second * half)
        return s, is_second, pair, group, int32((group * n + row) * n_seqs + s)

    return mine


@cache
def _find_of(form: Form, n: int) -> Any:
    """find(w, n_rows, panel, panel_end) -> the thread's Pair of rows."""
    find_pair, mine, half = pair_of(form), _mine_of(form, n), n // 2
    n_results = n * form.n_seqs

    @cuda.jit(device=True, forceinline=True)
    def find(w: Any, n_rows: Any, panel: Any, panel_end: Any) -> Any:
        first, jump, s, is_mine = int32(0), int32(0), int32(0), int32(0)
        if warp_has_pairs(int32((panel_end - panel) * n_results)):
            s, is_second, number, group, _ = mine()
            first, jump = find_pair(w, n_rows, int32(panel * half + number))
            if is_second == 0 and panel + group < panel_end and first < n_rows:
                is_mine = int32(1)
        return Pair(first, jump, s, is_mine)

    return find


@cache
def _load_next_of(form: Form, type: GGMLType) -> Any:
    """load_next(...): the next span's weights, or those of (group, span) once more where there is
    no next one: a branch would let the assembler load after it has multiplied."""
    load = load_of(form, type)

    @cuda.jit(device=True, forceinline=True)
    def load_next(
        w: Any, n_rows: Any, n_units: Any, items: Any, group: Any, span: Any,
        next_group: Any, next_span: Any, then: Any, then_high: Any, then_packed: Any,
    ) -> None:  # fmt: skip
        has_next = next_group < items.end_group
        load(
            w, n_rows, n_units, items, next_group if has_next else group,
            next_span if has_next else span, then, then_high, then_packed,
        )  # fmt: skip

    return load_next


@cache
def _do_spans_of(form: Form, type: GGMLType) -> Any:
    """do_spans(...): all of a warp's spans, into `partials`. The first one's weights are in `now`,
    the second one's on their way into `then`."""
    n = rows_a_warp(type, form.n_seqs)
    n_results = n * form.n_seqs
    load_next, do_span, copy = _load_next_of(form, type), span_of(form, type), copy_of(n)

    @cuda.jit(device=True, forceinline=True)
    def do_spans(
        w: Any, n_rows: Any, n_units: Any, items: Any, group: Any, chunk: Any, span: Any,
        next_group: Any, next_chunk: Any, next_span: Any,
        now: Any, now_high: Any, now_packed: Any, then: Any, then_high: Any, then_packed: Any,
        zero: Any, staged: Any, sums: Any, partials: Any,
    ) -> None:  # fmt: skip
        acc = cuda.local.array(n_results, float32)
        for i in range(n_results):
            acc[i] = float32(0)
        if group < items.end_group:
            do_span(
                items, n_units, group, chunk, span,
                now, now_high, now_packed, staged, sums, acc, partials,
            )  # fmt: skip
        while next_group < items.end_group:
            copy(now, now_high, now_packed, then, then_high, then_packed, zero)
            group, chunk, span = next_group, next_chunk, next_span
            next_group, next_chunk, next_span = next_span_of(items, group, chunk, span)
            load_next(
                w, n_rows, n_units, items, group, span, next_group, next_span,
                then, then_high, then_packed,
            )  # fmt: skip
            do_span(
                items, n_units, group, chunk, span,
                now, now_high, now_packed, staged, sums, acc, partials,
            )  # fmt: skip

    return do_spans


@cache
def _once_of(form: Form, type: GGMLType) -> Any:
    """once(w, first_group, end_group, ...): a product of one segment, but for LOGITS."""
    n_seqs, n = form.n_seqs, rows_a_warp(type, form.n_seqs)
    n_results, pool_of = n * n_seqs, Pool(type, n_seqs)
    n_staged, n_sums = pool_of.n_staged, pool_of.n_sums
    load, load_next = load_of(form, type), _load_next_of(form, type)
    do_spans, find, take = _do_spans_of(form, type), _find_of(form, n), take_of(type, n_seqs)
    extras, mine = extras_of(form), _mine_of(form, n)
    norm_scale = norm_scale_of(n_seqs)
    result_scale = 1.0 if type in DENSE else 1.0 / RESULT_SCALE

    @cuda.jit(device=True, forceinline=True)
    def once(
        code: Any, first_group: Any, end_group: Any, slot_pos: Any,
        pool: Any, squares: Any, n_pending: Any,
    ) -> Any:  # fmt: skip
        w = code.this
        norms = cuda.local.array((IN_FLIGHT, 4), float32)
        asked = cuda.local.array((IN_FLIGHT, 8), uint32)
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
        n_rows, n_units = int32(w[words.N_ROWS]), int32(w[words.N_UNITS])
        n_left = int32((end_group - first_group) * n_results)
        warp = int32(cuda.threadIdx.x >> 5)

        items = items_of(w, first_group, end_group, int32(0))
        group, chunk, span = first_span_of(w, items, int32(0), warp)
        next_group, next_chunk, next_span = next_span_of(items, group, chunk, span)
        mine_first = int32(min(group, int32(end_group - 1)))
        load(w, n_rows, n_units, items, mine_first, span, now, now_high, now_packed)
        n_cols, is_normed = int32(w[words.N_COLS]), w[words.NORM] != 0
        n_quads = int32(n_cols >> 2)
        load_norm(w, int32(0), n_quads, norms)
        pair = find(w, n_rows, first_group, end_group)
        if n_pending == 0:  # who has nothing to finish may ask at once
            write_extras(noted, extras(w, pair, slot_pos))
        finish_pending(code, n_pending, pool)
        x = array_at(w[words.X], (UNSEEN,), uint32)
        ask_x(x, int32(0), int32(0), n_quads, asked)
        if n_pending != 0:  # what was in OUT may have been finished only now
            write_extras(noted, extras(w, pair, slot_pos))
        extra = read_extras(noted)
        put_word(code)
        if warp_has_pairs(n_left):
            old_epoch = epoch_of(code, w[words.OLD_WRITER])
            _, _, _, _, part = mine()
            keep(pool, w, pair, extra, old_epoch, n_left, part, int32(part + n // 2 * n_seqs))
        # The second span's weights are not asked for before the first look has come.
        zero = uint32(w[words.ZERO])
        held_back = int32(asked[0, 1] & zero)
        next_group = int32(next_group + held_back)
        load_next(
            w, n_rows, n_units, items, mine_first, span, next_group, next_span,
            then, then_high, then_packed,
        )  # fmt: skip

        x_epoch = epoch_of(code, w[words.X_WRITER])
        for t in range(n_seqs):
            at = int32(t * int32(w[words.X_COLS]))
            if t > 0:
                ask_x(x, at, int32(0), n_quads, asked)
            share = take(x, x_epoch, at, n_quads, w, norms, t, asked, staged, sums)
            if is_normed:
                if (cuda.threadIdx.x & ~31) < n_quads:
                    share = warp_sum(share)
                if cuda.threadIdx.x & 31 == 0:
                    squares[uint32(t * N_WARPS + warp)] = share
        cuda.syncthreads()
        ask_next_norm(code)
        do_spans(
            w, n_rows, n_units, items, group, chunk, span, next_group, next_chunk, next_span,
            now, now_high, now_packed, then, then_high, then_packed, zero, staged, sums, partials,
        )  # fmt: skip
        number, is_second = my_pair()
        if is_second == 0 and 2 * number < n_left:
            scale = float32(result_scale) * norm_scale(w, n_cols, pair.s, squares)
            keep_scale(pool, number, scale)
        if w[words.LEAVES] != 0:
            return n_left
        finish_now(code, w, n_left, pool)
        return int32(0)

    return once


@cache
def _many_of(form: Form, type: GGMLType) -> Any:
    """many(w, first_group, end_group, ...): a product of any number of segments."""
    n_seqs, n = form.n_seqs, rows_a_warp(type, form.n_seqs)
    n_results, pool_of = n * n_seqs, Pool(type, n_seqs)
    n_staged, n_sums = pool_of.n_staged, pool_of.n_sums
    load, load_next = load_of(form, type), _load_next_of(form, type)
    do_spans, find, take = _do_spans_of(form, type), _find_of(form, n), take_of(type, n_seqs)
    extras, mine = extras_of(form), _mine_of(form, n)
    put_logits, gather, norm_scale = put_logits_of(form), gather_of(form), norm_scale_of(n_seqs)
    result_scale = 1.0 if type in DENSE else 1.0 / RESULT_SCALE

    @cuda.jit(device=True, forceinline=True)
    def many(
        code: Any, first_group: Any, end_group: Any, slot_pos: Any,
        pool: Any, squares: Any, n_pending: Any,
    ) -> Any:  # fmt: skip
        w = code.this
        norms = cuda.local.array((IN_FLIGHT, 4), float32)
        asked = cuda.local.array((IN_FLIGHT, 8), uint32)
        now = cuda.local.array((n, 4), uint32)
        now_high = cuda.local.array((n, 2), uint32)
        now_packed = cuda.local.array((n, 4), uint32)
        then = cuda.local.array((n, 4), uint32)
        then_high = cuda.local.array((n, 2), uint32)
        then_packed = cuda.local.array((n, 4), uint32)
        staged = part_of(pool, 0, n_staged, float32)
        sums = part_of(pool, n_staged, n_sums, float32)
        partials = part_of(pool, PARTIALS_AT, PARTIAL_FLOATS, float32)
        n_rows, n_cols = int32(w[words.N_ROWS]), int32(w[words.N_COLS])
        n_units, warp = int32(w[words.N_UNITS]), int32(cuda.threadIdx.x >> 5)
        x = array_at(w[words.X], (UNSEEN,), uint32)
        x_epoch = epoch_of(code, w[words.X_WRITER])
        thread_best, thread_top, thread_mass = int64(-1), float32(LOWEST), float32(0)
        total, panel, stage, is_first = float32(0), int32(first_group), int32(0), True
        # The segment before: its panel, groups and chunks; then its norm.
        done_panel, done_groups, done_chunks, scale = panel, int32(0), int32(0), float32(1)
        while True:
            panel_end = int32(min(panel + w[words.PANEL_GROUPS], end_group))
            group, chunk, span, n_chunks = panel, int32(0), int32(0), int32(0)
            next_group, next_chunk, next_span = panel, int32(0), int32(0)
            first_col, n_quads = int32(0), int32(0)
            if panel < end_group:
                first_col = int32(stage * int32(w[words.STAGE_COLS]))
                n_quads = int32(min(int32(w[words.STAGE_COLS]), int32(n_cols - first_col)) >> 2)
                # Tuples are made where they are used: LLVM does not end where a loop carries them.
                ahead = items_of(w, panel, panel_end, stage)
                n_chunks = ahead.n_chunks
                group, chunk, span = first_span_of(w, ahead, stage, warp)
                next_group, next_chunk, next_span = next_span_of(ahead, group, chunk, span)
                mine_first = int32(min(group, int32(panel_end - 1)))
                load(w, n_rows, n_units, ahead, mine_first, span, now, now_high, now_packed)
                load_next(
                    w, n_rows, n_units, ahead, mine_first, span, next_group, next_span,
                    then, then_high, then_packed,
                )  # fmt: skip
            if is_first:
                finish_pending(code, n_pending, pool)
                load_norm(w, first_col, n_quads, norms)
                ask_x(x, first_col, int32(0), n_quads, asked)
                put_word(code)
            else:
                cuda.syncthreads()  # the partial results of the segment before are there
                _, _, _, my_group, my_partial = mine()
                if my_group < done_groups:
                    stride = int32(done_groups * n_results)
                    total += sum_chunks(partials, my_partial, stride, done_chunks)
                if stage == 0:
                    pair = find(w, n_rows, done_panel, int32(done_panel + done_groups))
                    extra = extras(w, pair, slot_pos)
                    if w[words.KIND] == words.LOGITS:
                        thread_best, thread_top, thread_mass = put_logits(
                            w, total * scale, pair, extra, n_rows,
                            thread_best, thread_top, thread_mass,
                        )  # fmt: skip
                    else:
                        old_epoch = epoch_of(code, w[words.OLD_WRITER])
                        epoch = epoch_of(code, w[words.WRITER])
                        finish(w, pair, extra, total * scale, old_epoch, epoch)
                    total = float32(0)
                if panel == end_group:
                    break
                if w[words.N_STAGES] > 1:
                    load_norm(w, first_col, n_quads, norms)
                    ask_x(x, first_col, int32(0), n_quads, asked)
            zero = uint32(w[words.ZERO])
            is_normed = w[words.NORM] != 0
            if is_first or w[words.N_STAGES] > 1:
                for t in range(n_seqs):
                    at = int32(t * int32(w[words.X_COLS]) + first_col)
                    if t > 0:
                        ask_x(x, at, int32(0), n_quads, asked)
                    share = take(x, x_epoch, at, n_quads, w, norms, t, asked, staged, sums)
                    if is_normed and panel == first_group:
                        share = warp_sum(share)
                        if cuda.threadIdx.x & 31 == 0:
                            here = uint32(t * N_WARPS + warp)
                            squares[here] = share + (float32(0) if is_first else squares[here])
            cuda.syncthreads()
            items = items_of(w, panel, panel_end, stage)
            do_spans(
                w, n_rows, n_units, items, group, chunk, span, next_group, next_chunk, next_span,
                now, now_high, now_packed, then, then_high, then_packed,
                zero, staged, sums, partials,
            )  # fmt: skip
            s, _, _, _, _ = mine()
            scale = float32(result_scale) * norm_scale(w, n_cols, s, squares)
            done_panel, done_groups, done_chunks = panel, int32(panel_end - panel), n_chunks
            is_first, stage = False, int32(stage + 1)
            if stage == w[words.N_STAGES]:
                stage, panel = int32(0), panel_end
        ask_next_norm(code)
        if w[words.KIND] == words.LOGITS:
            gather(w, thread_best, thread_top, thread_mass, pool)
        return int32(0)

    return many


@cache
def product_of(form: Form, type: GGMLType) -> Any:
    """product(code, slot_pos, pool, squares, n_pending): the instruction code.this
    -> how many results it leaves to the next one."""
    Pool(type, form.n_seqs).check()
    once, many = _once_of(form, type), _many_of(form, type)

    @cuda.jit(device=True, forceinline=True)
    def product(code: Any, slot_pos: Any, pool: Any, squares: Any, n_pending: Any) -> Any:
        w = code.this
        first, end = share_of(w)
        if first == end:
            finish_pending(code, n_pending, pool)
            put_word(code)
            cuda.syncthreads()  # every instruction is one: the next one's words are there
            return int32(0)
        if end - first <= w[words.PENDING_GROUPS]:
            return once(code, first, end, slot_pos, pool, squares, n_pending)
        return many(code, first, end, slot_pos, pool, squares, n_pending)

    return product
