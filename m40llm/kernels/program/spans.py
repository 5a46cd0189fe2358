"""All spans of a warp, one after another: the next one's weights on their way meanwhile.

- A span is multiplied before the loop, which begins by waiting. The assembler (of sm_90) counts
  loads whose use is in another basic block in one scoreboard: who waits for one waits for all.
- Left to itself, the assembler keeps both spans' weights in the same registers and loads after it
  has multiplied. An unconditional load prevents that (a warp without a next span loads what it has
  once more), together with two sets of registers that take turns: two spans in a round of the loop,
  each load held back until the set before it has come. With more than one sequence such a round is
  very long, and seems to cost more than it saves (LOG.md): there the next span's weights are
  copied, xor a zero that the assembler cannot know.

What decides between ways through a loop is read from the words each time: a condition in a register
would be the same all through the loop, and LLVM would make a loop for each.
"""

from functools import cache
from typing import Any

from gguf import GGMLQuantizationType as GGMLType
from numba import cuda, float32, int32

from m40llm.kernels.program.form import Form, rows_a_lane
from m40llm.kernels.program.items import copy_of, load_of, next_span_of, span_of


def loading_of(form: Form, type: GGMLType) -> tuple[Any, Any, Any]:
    """(load, load_next, do_spans)"""
    return load_of(form, type), load_next_of(form, type), do_spans_of(form, type)


@cache
def load_next_of(form: Form, type: GGMLType) -> Any:
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
def _turn_of(form: Form, type: GGMLType) -> Any:
    """turn(...) -> the span after this one, which is multiplied while that one's weights are on
    their way; they are asked for when `wait`, which is 0, is known."""
    load_next, do_span = load_next_of(form, type), span_of(form, type)

    @cuda.jit(device=True, forceinline=True)
    def turn(
        w: Any, n_rows: Any, n_units: Any, items: Any, group: Any, chunk: Any, span: Any, wait: Any,
        now: Any, now_high: Any, now_packed: Any, then: Any, then_high: Any, then_packed: Any,
        staged: Any, sums: Any, acc: Any, results: Any, mark: Any,
    ) -> Any:  # fmt: skip
        next_group, next_chunk, next_span = next_span_of(items, group, chunk, span)
        load_next(
            w, n_rows, n_units, items, int32(group + wait), span, int32(next_group + wait),
            next_span, then, then_high, then_packed,
        )  # fmt: skip
        do_span(
            items, group, chunk, span,
            now, now_high, now_packed, staged, sums, acc, results, mark,
        )  # fmt: skip
        return next_group, next_chunk, next_span

    return turn


@cache
def do_spans_of(form: Form, type: GGMLType) -> Any:
    """do_spans(...): all of a warp's spans, left to `results` (items.py: leave). The first one's
    weights are in `now`, the second one's on their way into `then`."""
    n, takes_turns = rows_a_lane(type, form.n_seqs), form.n_seqs == 1
    n_results = n * form.n_seqs
    turn, do_span, copy = _turn_of(form, type), span_of(form, type), copy_of(n)

    @cuda.jit(device=True, forceinline=True)
    def do_spans(
        w: Any, n_rows: Any, n_units: Any, items: Any, group: Any, chunk: Any, span: Any,
        next_group: Any, next_chunk: Any, next_span: Any,
        now: Any, now_high: Any, now_packed: Any, then: Any, then_high: Any, then_packed: Any,
        zero: Any, staged: Any, sums: Any, results: Any, mark: Any,
    ) -> None:  # fmt: skip
        acc = cuda.local.array(n_results, float32)
        for i in range(n_results):
            acc[i] = float32(0)
        if group < items.end_group:
            do_span(
                items, group, chunk, span,
                now, now_high, now_packed, staged, sums, acc, results, mark,
            )  # fmt: skip
        group, chunk, span = next_group, next_chunk, next_span
        while group < items.end_group:
            if takes_turns:
                group, chunk, span = turn(
                    w, n_rows, n_units, items, group, chunk, span, int32(then[n - 1, 0] & zero),
                    then, then_high, then_packed, now, now_high, now_packed,
                    staged, sums, acc, results, mark,
                )  # fmt: skip
            else:
                copy(now, now_high, now_packed, then, then_high, then_packed, zero)
            if group < items.end_group:
                group, chunk, span = turn(
                    w, n_rows, n_units, items, group, chunk, span,
                    int32(now[n - 1, 0] & zero) if takes_turns else int32(0),
                    now, now_high, now_packed, then, then_high, then_packed,
                    staged, sums, acc, results, mark,
                )  # fmt: skip

    return do_spans
