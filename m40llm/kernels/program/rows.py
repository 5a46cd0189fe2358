"""Which rows of a matrix belong together: those whose results meet in the epilogue.

A warp takes n rows at a time, a group: n/2 from `first` on, and n/2 from first + jump on.

    plain                rows in order: jump is n/2
    SWIGLU               gate rows, and the up rows beside them, n_rows/2 further on
    APPEND, interleaved  plain: pairs that RoPE turns together are neighbours
    APPEND, half         the first halves of pairs, and their second halves: rope_dim/2 further on;
                         beyond rope_dim, nothing turns, and halves of the rest are taken together

    first, jump = rows_of(kind, n_rows, group)
    partner     = of result r of a group, whose pair it is: r ^ 1 where plain, r + n/2 elsewhere
"""

from functools import cache
from typing import Any

from numba import cuda, int32, uint32

from m40llm.kernels.program import words
from m40llm.kernels.program.form import Form


@cache
def rows_of(form: Form, n: int) -> Any:
    """(first, jump) of a group."""
    head_dim, half_dim, n_turned = form.head_dim, form.head_dim // 2, form.rope_dim // 2
    n_kept, half, is_half = half_dim - n_turned, n // 2, form.rope_layout == "half"

    @cuda.jit(device=True, forceinline=True)
    def rows_of(kind: Any, n_rows: Any, group: Any) -> Any:
        if kind == words.SWIGLU:
            return int32(group * half), int32(n_rows >> 1)
        if is_half and kind == words.APPEND:
            pair = uint32(group * half)
            head = uint32(pair // uint32(half_dim))
            d = uint32(pair - head * uint32(half_dim))
            if d < n_turned:
                return int32(head * head_dim + d), int32(n_turned)
            return int32(head * head_dim + n_turned + d), int32(n_kept)
        return int32(group * n), int32(half)

    return rows_of
