"""All spans of a warp, one after another: the next one's weights on their way meanwhile.

- A span is multiplied before the loop, which begins by waiting. The assembler (of sm_90) counts
  loads whose use is in another basic block in one scoreboard: who waits for one waits for all.
- In the loop, left to itself, the assembler keeps both spans' weights in the same registers and
  loads after it has multiplied; `copy` with a zero that it cannot know prevents that, and so does
  an unconditional load: a warp without a next span loads what it has once more.

What decides between ways through a loop is read from the words each time: a condition in a register
would be the same all through the loop, and LLVM would make a loop for each.
"""

from functools import cache
from typing import Any

from gguf import GGMLQuantizationType as GGMLType
from numba import cuda, float32

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
def do_spans_of(form: Form, type: GGMLType) -> Any:
    """do_spans(...): all of a warp's spans, left to `results` (items.py: leave). The first one's
    weights are in `now`, the second one's on their way into `then`."""
    n = rows_a_lane(type, form.n_seqs)
    n_results = n * form.n_seqs
    load_next, do_span, copy = load_next_of(form, type), span_of(form, type), copy_of(n)

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
        while next_group < items.end_group:
            copy(now, now_high, now_packed, then, then_high, then_packed, zero)
            group, chunk, span = next_group, next_chunk, next_span
            next_group, next_chunk, next_span = next_span_of(items, group, chunk, span)
            load_next(
                w, n_rows, n_units, items, group, span, next_group, next_span,
                then, then_high, then_packed,
            )  # fmt: skip
            do_span(
                items, group, chunk, span,
                now, now_high, now_packed, staged, sums, acc, results, mark,
            )  # fmt: skip

    return do_spans
