"""Which rows of a matrix belong together: pairs, whose two results meet in the epilogue.

LOGITS, ADD          neighbours
ROTATE, interleaved  neighbours: RoPE turns them together
ROTATE, half         the first half of a head's turned elements with the second, rope_dim / 2
                     further on; beyond rope_dim nothing turns, and halves of the rest pair up
SWIGLU               a gate row and its up row, n_rows / 2 further on

first, jump = pair_of(w, n_rows, pair)     the pair's rows are first and first + jump
s, pair, group, part, second = result_of(number)    a pair of results
"""

from functools import cache
from typing import Any

from gguf import GGMLQuantizationType as GGMLType
from numba import cuda, int32, uint32

from m40llm.kernels.program import words
from m40llm.kernels.program.code import word_of
from m40llm.kernels.program.form import Form, rows_a_lane


@cache
def pair_of(form: Form) -> Any:
    """(first, jump) of a pair."""
    head_dim, half_dim, n_turned = form.head_dim, form.head_dim // 2, form.rope_dim // 2
    n_kept, is_half = half_dim - n_turned, form.rope_layout == "half"

    @cuda.jit(device=True, forceinline=True)
    def pair_of(w: Any, n_rows: Any, pair: Any) -> Any:
        first, jump = int32(pair * word_of(w, words.PAIR_STEP)), word_of(w, words.PAIR_JUMP)
        if is_half and word_of(w, words.KIND) == words.ROTATE:
            head = uint32(pair) // uint32(half_dim)
            d = int32(pair - head * half_dim)
            first = int32(head * head_dim + d)
            jump = int32(n_turned)
            if d >= n_turned:
                first, jump = int32(first + n_turned), int32(n_kept)
        return first, jump

    return pair_of


@cache
def result_of(form: Form, type: GGMLType) -> Any:
    """(s, pair, group, part, second) of a pair of results: the sequence; pair and group, counted
    from the panel's first; where the first partial results of its two rows lie, if they lie in
    shared memory."""
    n_seqs, n = form.n_seqs, rows_a_lane(type, form.n_seqs)
    half, n_results = n // 2, n * n_seqs

    @cuda.jit(device=True, forceinline=True)
    def result_of(number: Any) -> Any:
        s, pair = uint32(number) % uint32(n_seqs), uint32(number) // uint32(n_seqs)
        group = pair // uint32(half)
        part = int32(group * n_results + pair % uint32(half) * n_seqs + s)
        return int32(s), int32(pair), int32(group), part, int32(part + n_results // 2)

    return result_of
