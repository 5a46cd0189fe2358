"""Results of a product that the next instruction finishes, while its weights are on their way.

Else memory is idle from a product's last load until its last warp is done and all results are
given. So a product of one segment ends with its partial results; each warp goes on to the next
instruction as soon as it is done, asks for its weights, and waits for the others only then. Not so
a small product (`leaves`), whose warps are all done at the same time: asking for weights first
would hold up its results.

    keep(code, pool, pair, extra, n_left, part, second)            while x is waited for
    keep_scale(pool, number, scale)                                when x is known
    finish_pending(code, n_pending, pool)                          in the next instruction
    finish_now(code, w, n_results, pool)                           or at once

What is kept of a pair lies in shared memory: in registers it would be spilled, and a spilled word
comes back behind the weights. Its words: bits of the two biases; a and b (epilogue.py); place;
jump; where the partial results of the first row begin, and from bit 16 on those of the second;
scale.
"""

from functools import cache
from typing import Any, Final

from numba import cuda, float32, int32, uint32

from m40llm.kernels.bits import float_as_uint, uint_as_float
from m40llm.kernels.intrinsics import load_uint4_shared, store_uint4_shared
from m40llm.kernels.program import words
from m40llm.kernels.program.code import epoch_of, word_of
from m40llm.kernels.program.epilogue import (
    NOWHERE,
    give_pair_of,
    my_pair,
    place_of,
    warp_has_pairs,
)
from m40llm.kernels.program.form import (
    KEPT_AT,
    KEPT_FLOATS,
    KEPT_WORDS,
    PARTIAL_FLOATS,
    PARTIALS_AT,
    Form,
)
from m40llm.kernels.program.items import sum_chunks
from m40llm.kernels.reduce import FULL_MASK
from m40llm.kernels.views import part_of

_SCALE: Final = 7  # which of the words


@cuda.jit(device=True, forceinline=True)
def keep(code: Any, pool: Any, pair: Any, extra: Any, n_left: Any, part: Any, second: Any) -> None:
    """What finish_pending will need of a pair, by its first thread; `part` and `second`: where the
    partial results of its two rows begin."""
    kept = part_of(pool, KEPT_AT, KEPT_FLOATS, uint32)
    number, is_second = my_pair()
    if is_second == 0 and int32(2 * number) < n_left:
        old_epoch = epoch_of(code, code.this[words.OLD_WRITER])
        place, jump, a, b = place_of(code.this, pair, extra, old_epoch)
        at, parts = int32(number * KEPT_WORDS), uint32(part) | uint32(uint32(second) << uint32(16))
        first_bias, second_bias = float_as_uint(extra.bias_first), float_as_uint(extra.bias_second)
        store_uint4_shared(kept, at, first_bias, second_bias, a, b)
        store_uint4_shared(kept, int32(at + 4), place, jump, parts, uint32(0))


@cuda.jit(device=True, forceinline=True)
def keep_scale(pool: Any, number: Any, scale: Any) -> None:
    """What the results of pair `number` are multiplied by: known when x is."""
    part_of(pool, KEPT_AT, KEPT_FLOATS, float32)[uint32(number * KEPT_WORDS + _SCALE)] = scale


@cache
def _finish_of(form: Form) -> Any:
    """finish(code, w, n_pending, pool): the warp's share of the results of instruction w."""
    give_pair = give_pair_of(form)

    @cuda.jit(device=True, forceinline=True)
    def finish(code: Any, w: Any, n_pending: Any, pool: Any) -> None:
        kept = part_of(pool, KEPT_AT, KEPT_FLOATS, uint32)
        partials = part_of(pool, PARTIALS_AT, PARTIAL_FLOATS, float32)
        number, is_second = my_pair()
        at, is_there = int32(number * KEPT_WORDS), int32(2 * number) < n_pending
        result, place, jump = float32(0), uint32(NOWHERE), uint32(0)
        if is_there:
            place, jump, parts, scale = load_uint4_shared(kept, int32(at + 4))
            part = int32((parts >> uint32(16 * is_second)) & uint32(0xFFFF))
            n_chunks = word_of(w, words.LAST_CHUNKS)
            result = uint_as_float(scale) * sum_chunks(partials, part, n_pending, n_chunks)
        other = cuda.shfl_xor_sync(FULL_MASK, result, 1)
        if is_there and is_second == 0 and place != uint32(NOWHERE):
            first_bias, second_bias, a, b = load_uint4_shared(kept, at)
            first = result + uint_as_float(first_bias)
            second = other + uint_as_float(second_bias)
            old_epoch = epoch_of(code, w[words.OLD_WRITER])
            epoch = epoch_of(code, w[words.WRITER])
            a, b = uint_as_float(a), uint_as_float(b)
            give_pair(w, place, jump, first, second, a, b, old_epoch, epoch)

    return finish


@cache
def pending_of(form: Form) -> tuple[Any, Any]:
    """finish_now(code, w, n_results, pool): all results of instruction w.

    finish_pending(code, n_pending, pool): the results of the instruction before, of which it left
    `n_pending` to be finished: while this one's weights are on their way. Every instruction does it
    before it waits for anything.
    """
    finish = _finish_of(form)

    @cuda.jit(device=True, forceinline=True)
    def finish_now(code: Any, w: Any, n_results: Any, pool: Any) -> None:
        cuda.syncthreads()  # the partial results are there
        if warp_has_pairs(n_results):
            finish(code, w, n_results, pool)

    @cuda.jit(device=True, forceinline=True)
    def finish_pending(code: Any, n_pending: Any, pool: Any) -> None:
        if n_pending != 0:
            finish_now(code, code.before, n_pending, pool)

    return finish_now, finish_pending
