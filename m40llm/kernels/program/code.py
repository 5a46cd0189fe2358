"""The instructions of a program as a block has them at hand, in shared memory.

Four of them: the one that runs; the next one, whose norm is asked for; the one after that, which is
on its way from global memory; and the one before, whose results may be still to be finished.
"""

from typing import Any, Final, NamedTuple

from numba import cuda, int32, int64, uint32

from m40llm.kernels.intrinsics import prefetch
from m40llm.kernels.program import words
from m40llm.kernels.program.exchange import writing_of
from m40llm.kernels.program.form import N_THREADS
from m40llm.kernels.reduce import WARP_SIZE
from m40llm.kernels.views import part_of

N_HELD: Final = 4
_LINE_BYTES: Final = 128
_FIRST_THREAD: Final = N_THREADS - words.N_WORDS  # the last ones: others have x to take


class Code(NamedTuple):
    """`this` is the instruction that runs, `before` the one that ran; `there` and `later` are where
    the next one begins in `held`, and the one after it."""

    this: Any
    before: Any
    held: Any  # shared int64[N_HELD * N_WORDS]
    there: Any
    later: Any
    word: Any  # the thread's word of that one, on its way
    n_instructions: Any
    steps: Any  # shared int64[1]: which step it is. No register holds it: attention needs them all


@cuda.jit(device=True, forceinline=True)
def after(here: Any) -> Any:
    """Where the instruction after the one at `here` begins."""
    return int32((here + words.N_WORDS) if here < (N_HELD - 1) * words.N_WORDS else 0)


@cuda.jit(device=True, forceinline=True)
def code_at(held: Any, here: Any, word: Any, n_instructions: Any, steps: Any) -> Code:
    """Code, where the instruction that runs begins at `here`."""
    there = after(here)
    later = after(there)
    this = part_of(held, here, words.N_WORDS, int64)
    before = part_of(held, after(later), words.N_WORDS, int64)
    return Code(this, before, held, there, later, word, n_instructions, steps)


@cuda.jit(device=True, forceinline=True)
def epoch_of(code: Any, writer: Any) -> Any:
    """Of what instruction `writer` writes in this step."""
    return writing_of(code.steps[0], code.n_instructions, writer)


@cuda.jit(device=True, forceinline=True)
def read_word(program: Any, at: Any) -> Any:
    """The thread's word of instruction `at`, from global memory; the last threads have one."""
    mine, word = int32(int32(cuda.threadIdx.x) - _FIRST_THREAD), int64(0)
    if mine >= 0:
        word = program[uint32(at), uint32(mine)]
    return word


@cuda.jit(device=True, forceinline=True)
def put_word(code: Any) -> None:
    """The thread's word to where it belongs. Each instruction does it once, before its last
    barrier; and soon: held for long, a word would be spilled, and to spill is to wait for it."""
    mine = int32(int32(cuda.threadIdx.x) - _FIRST_THREAD)
    if mine >= 0:
        code.held[uint32(code.later + mine)] = code.word


@cuda.jit(device=True, forceinline=True)
def share_of(w: Any) -> Any:
    """(first, end) of the block's groups of rows."""
    block = int32(int32(cuda.blockIdx.x) >> int32(w[words.SLICE_SHIFT]))
    n_fewer, n_more = int32(w[words.GROUPS_A_BLOCK]), int32(w[words.GROUPS_LEFT])
    first = int32(block * n_fewer + min(block, n_more))
    return first, int32(first + n_fewer + (1 if block < n_more else 0))


@cuda.jit(device=True, forceinline=True)
def ask_next_norm(code: Any) -> None:
    """The weights of the next instruction's norm, on their way into the L2: a line a block, since
    every block wants them all. One warp does it."""
    norm = code.held[code.there + words.NORM]
    if cuda.threadIdx.x == N_THREADS - WARP_SIZE and norm != 0:
        at = int64(cuda.blockIdx.x) * _LINE_BYTES
        while at < 4 * code.held[code.there + words.N_COLS]:
            prefetch(norm + at)
            at += int64(cuda.gridDim.x) * _LINE_BYTES
