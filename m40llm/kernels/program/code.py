"""The instructions of a program as a block has them at hand, in shared memory.

Four of them: the one that runs; the next one, whose norm is asked for; the one after that, which is
on its way from global memory; and the one before, whose results may be still to be finished.
"""

from typing import Any, Final, NamedTuple

from numba import cuda, int32, int64, uint32

from m40llm.kernels.hints import prefetch
from m40llm.kernels.program import words
from m40llm.kernels.program.exchange import writing_of
from m40llm.kernels.program.form import N_THREADS
from m40llm.kernels.reduce import WARP_SIZE
from m40llm.kernels.views import UNSEEN, part_of

N_HELD: Final = 4  # a power of two
_LINE_BYTES: Final = 128
_FIRST_THREAD: Final = N_THREADS - words.N_WORDS  # the last ones: others have x to take


class Code(NamedTuple):
    """`this` is the instruction that runs, `before` the one that ran; `there` and `later` are where
    the next one begins in `held`, and the one after it. They take turns: number `turn` of all that
    have run is in place turn % N_HELD."""

    this: Any
    before: Any
    held: Any  # shared int64[N_HELD * N_WORDS]
    there: Any
    later: Any
    word: Any  # the thread's word of that one, on its way
    n_instructions: Any
    steps: Any  # shared int64[1]: which step it is. No register holds it: attention needs them all


@cuda.jit(device=True, forceinline=True)
def word_of(w: Any, which: Any) -> Any:
    """A word that is a number of 32 bits: read as one, it is compared as one, too."""
    return part_of(w, which, 2, int32)[uint32(0)]


@cuda.jit(device=True, forceinline=True)
def held_at(turn: Any) -> Any:
    """Where in `held` the instruction of this turn begins."""
    return int32((uint32(turn) & uint32(N_HELD - 1)) * uint32(words.N_WORDS))


@cuda.jit(device=True, forceinline=True)
def code_at(held: Any, turn: Any, word: Any, n_instructions: Any, steps: Any) -> Code:
    """Code, where the instruction of this turn runs."""
    this = part_of(held, held_at(turn), words.N_WORDS, int64)
    before = part_of(held, held_at(int32(turn - 1)), words.N_WORDS, int64)
    there, later = held_at(int32(turn + 1)), held_at(int32(turn + 2))
    return Code(this, before, held, there, later, word, n_instructions, steps)


@cuda.jit(device=True, forceinline=True)
def epoch_of(code: Any, writer: Any) -> Any:
    """Of what instruction `writer` writes in this step."""
    return writing_of(code.steps[0], code.n_instructions, writer)


@cuda.jit(device=True, forceinline=True)
def read_word(program: Any, w: Any) -> Any:
    """The thread's word of the instruction after the next one, from global memory; the last threads
    have one."""
    mine, word = int32(int32(cuda.threadIdx.x) - _FIRST_THREAD), int64(0)
    if mine >= 0:
        all_words = part_of(program, 0, UNSEEN, int64)
        word = all_words[uint32(word_of(w, words.AFTER_NEXT) * words.N_WORDS + mine)]
    return word


@cuda.jit(device=True, forceinline=True)
def put_word(code: Any) -> None:
    """The thread's word to where it belongs. Each instruction does it once, before its last
    barrier; and soon: held for long, a word would be spilled, and to spill is to wait for it."""
    mine = int32(int32(cuda.threadIdx.x) - _FIRST_THREAD)
    if mine >= 0:
        code.held[uint32(code.later + mine)] = code.word


@cuda.jit(device=True, forceinline=True)
def share_of(w: Any, block: Any) -> Any:
    """(first, end) of the groups of rows of a block, or of those that share them (sliced.py)."""
    n_fewer, n_more = word_of(w, words.GROUPS_A_BLOCK), word_of(w, words.GROUPS_LEFT)
    first = int32(block * n_fewer + min(block, n_more))
    return first, int32(first + n_fewer + (1 if block < n_more else 0))


@cuda.jit(device=True, forceinline=True)
def ask_next_norm(code: Any) -> None:
    """The weights of the next instruction's norm, on their way into the L2: a line a block, since
    every block wants them all. One warp does it."""
    if cuda.threadIdx.x == N_THREADS - WARP_SIZE:
        norm = code.held[uint32(code.there + words.NORM)]
        if norm != 0:
            at = int32(int32(cuda.blockIdx.x) * _LINE_BYTES)
            n_bytes = int32(4 * word_of(code.held, int32(code.there + words.N_COLS)))
            while at < n_bytes:
                prefetch(norm + at)
                at += int32(int32(cuda.gridDim.x) * _LINE_BYTES)
