"""What becomes of a product's results, two at a time: those of a pair of rows.

ADD     out[s, row] += result + bias                       the residual stream
SWIGLU  out[s, p] = silu(gate) * up                        of pair p, see rows.py; or gelu(gate)
ROTATE  out[s, FIRST_ROW + row]: Q, K and V stacked; those of Q and K turned by RoPE
STORE   out[s, row]: turned by no angle
LOGITS  see logits.py

What an epilogue needs beside the results (`Extras`) is asked for before x is there, and looked at
only in the end: 16 bytes as they come, whose arrival nobody waits for earlier.
"""

import math
from functools import cache
from typing import Any, Final, NamedTuple

from gguf import GGMLQuantizationType as GGMLType
from numba import cuda, float32, int32, int64, uint32

from m40llm.kernels.bits import float_as_uint, uint_as_float
from m40llm.kernels.intrinsics import load_uint4_volatile, load_volatile
from m40llm.kernels.layouts import DENSE
from m40llm.kernels.program import words
from m40llm.kernels.program.code import word_of
from m40llm.kernels.program.exchange import give1, give2, take2
from m40llm.kernels.program.form import N_THREADS, Form, group_rows
from m40llm.kernels.program.rows import pair_of, result_of
from m40llm.kernels.reduce import WARP_SIZE
from m40llm.kernels.swiglu import GELU_CUBIC, GELU_LINEAR
from m40llm.kernels.unpack import RESULT_SCALE
from m40llm.kernels.views import UNSEEN, array_at

_ONE: Final = 0x3F800000  # the bits of 1.0
LOWEST: Final = -3.4e38  # as attention's: finite, so that exp(LOWEST - LOWEST) is 1


class Extras(NamedTuple):
    """Of a pair: the biases; and four words. ADD: what was in OUT, number and epoch of either.
    ROTATE: cos and sin of two angles, of which the pair's is the second where `is_odd`."""

    bias_first: Any
    bias_second: Any
    word_0: Any
    word_1: Any
    word_2: Any
    word_3: Any
    is_odd: Any


class Pair(NamedTuple):
    """The pair of rows, and the sequence, whose results a thread and its neighbour have."""

    first: Any
    jump: Any
    s: Any
    is_mine: Any  # 1 if the pair exists and this thread is the first of the two, else 0


@cache
def factor_of(form: Form, type: GGMLType) -> Any:
    """factor(w): what the sums of a product of this type are multiplied by, before any norm."""
    result_scale = 1.0 if type in DENSE else 1.0 / RESULT_SCALE
    has_factors = form.has_factors

    @cuda.jit(device=True, forceinline=True)
    def factor(w: Any) -> Any:
        found = float32(result_scale)
        if has_factors:
            found *= uint_as_float(uint32(word_of(w, words.FACTOR)))
        return found

    return factor


@cache
def find_of(form: Form, type: GGMLType) -> Any:
    """find(w, n_rows, number, is_second, panel, panel_end) -> Pair, of a panel's pair of results:
    pairs count from its first, groups are the matrix's."""
    find_pair, result_at = pair_of(form), result_of(form, type)
    pairs_a_group = group_rows(type, form.n_seqs) // 2
    n_results = 2 * pairs_a_group * form.n_seqs

    @cuda.jit(device=True, forceinline=True)
    def find(
        w: Any, n_rows: Any, number: Any, is_second: Any, panel: Any, panel_end: Any
    ) -> Any:  # fmt: skip
        first, jump, s, is_mine = int32(0), int32(0), int32(0), int32(0)
        if warp_has_pairs(int32((panel_end - panel) * n_results)):
            s, pair, group, _, _ = result_at(number)
            first, jump = find_pair(w, n_rows, int32(panel * pairs_a_group + pair))
            if is_second == 0 and int32(panel + group) < panel_end and first < n_rows:
                is_mine = int32(1)
        return Pair(first, jump, s, is_mine)

    return find


@cache
def extras_of(form: Form) -> Any:
    """extras(w, pair, slot_pos) -> Extras."""
    head_dim, turned_rows, rope_dim = form.head_dim, form.q_dim + form.kv_dim, form.rope_dim
    n_angles, is_half = form.rope_dim // 2, form.rope_layout == "half"

    @cuda.jit(device=True, forceinline=True)
    def extras(w: Any, pair: Any, slot_pos: Any) -> Any:
        bias_first, bias_second = float32(0), float32(0)
        word_0, word_1, word_2, word_3 = uint32(_ONE), uint32(0), uint32(_ONE), uint32(0)
        is_odd = int32(0)
        if pair.is_mine != 0:
            if w[words.BIAS] != 0:
                bias = array_at(w[words.BIAS], (UNSEEN,), float32)
                bias_first = load_volatile(bias, pair.first)
                bias_second = load_volatile(bias, pair.first + pair.jump)
            address, at = int64(0), int64(0)
            if word_of(w, words.KIND) == words.ROTATE:
                row = uint32(pair.first + w[words.FIRST_ROW])
                d = uint32(row % uint32(head_dim))
                pos = slot_pos[pair.s]
                if row < turned_rows and d < rope_dim and pos >= 0:
                    at = int64(pos) * n_angles + (d if is_half else d >> uint32(1))
                    is_odd = int32(at & 1)
                    address, at = w[words.ANGLES], int64(at >> 1) * 4
            elif word_of(w, words.KIND) == words.ADD:
                address = w[words.OUT]
                at = int64(2) * (pair.s * w[words.OUT_COLS] + pair.first)
            if address != 0:
                found = array_at(address, (UNSEEN,), uint32)
                word_0, word_1, word_2, word_3 = load_uint4_volatile(found, at)
        return Extras(bias_first, bias_second, word_0, word_1, word_2, word_3, is_odd)

    return extras


@cuda.jit(device=True, forceinline=True)
def write_extras(noted: Any, extra: Any) -> None:
    """Into uint32[7]: a tuple that depends on the way to it makes LLVM not end."""
    noted[0], noted[1] = float_as_uint(extra.bias_first), float_as_uint(extra.bias_second)
    noted[2], noted[3], noted[4] = extra.word_0, extra.word_1, extra.word_2
    noted[5], noted[6] = extra.word_3, uint32(extra.is_odd)


@cuda.jit(device=True, forceinline=True)
def read_extras(noted: Any) -> Extras:
    """What write_extras has written."""
    first, second = uint_as_float(noted[0]), uint_as_float(noted[1])
    return Extras(first, second, noted[2], noted[3], noted[4], noted[5], int32(noted[6]))


NOWHERE: Final = 0xFFFFFFFF
STALE: Final = 0xFFFFFFFF


@cuda.jit(device=True, forceinline=True)
def my_pair() -> Any:
    """(pair, is_second): which result of a panel is this thread's, those of a pair being
    neighbours. A small product's are the last warps', since the first have x to take and items to
    multiply."""
    thread = uint32(cuda.threadIdx.x) ^ uint32(N_THREADS - WARP_SIZE)
    return int32(thread >> uint32(1)), int32(thread & uint32(1))


@cuda.jit(device=True, forceinline=True)
def warp_has_pairs(n_results: Any) -> Any:
    """Whether any of so many results is the warp's; the others need not go through the motions."""
    first = (uint32(cuda.threadIdx.x) ^ uint32(N_THREADS - WARP_SIZE)) & uint32(-WARP_SIZE)
    return int32(first) < n_results


@cuda.jit(device=True, forceinline=True)
def place_of(w: Any, pair: Any, extra: Any, old_epoch: Any) -> Any:
    """(place, jump, a, b) of a pair; waits for `extra`.

    place   of the first result in OUT; NOWHERE: the pair does not exist, or is another thread's
    jump    how much further the second one is; STALE: what was in OUT had not arrived yet
    a, b    bits of what was in OUT (ADD), of cos and sin (ROTATE)
    """
    place, jump = uint32(NOWHERE), uint32(pair.jump)
    first, second = extra.word_0, extra.word_1
    if pair.is_mine != 0:
        place = uint32(pair.s * word_of(w, words.OUT_COLS) + pair.first)
    if word_of(w, words.KIND) == words.ADD:
        second = extra.word_2
        if extra.word_1 != old_epoch or extra.word_3 != old_epoch:
            jump = uint32(STALE)
    elif word_of(w, words.KIND) == words.ROTATE:
        place = uint32(place + uint32(word_of(w, words.FIRST_ROW))) if pair.is_mine != 0 else place
        if extra.is_odd != 0:
            first, second = extra.word_2, extra.word_3
    return place, jump, first, second


@cuda.jit(device=True, forceinline=True)
def _silu(g: Any) -> Any:
    return g / (float32(1) + math.exp(-g))


@cuda.jit(device=True, forceinline=True)
def _gelu(g: Any) -> Any:
    """In its tanh form, as swiglu.py has it."""
    exponent = float32(GELU_LINEAR) * (g + float32(GELU_CUBIC) * g * g * g)
    return g / (float32(1) + math.exp(exponent))


_ACTIVATIONS: Final = {"silu": _silu, "gelu": _gelu}


@cache
def give_pair_of(form: Form) -> Any:
    """give_pair(w, place, jump, first, second, a, b, old_epoch, epoch): a pair's results, biases
    added, to where place_of has said."""
    activated = _ACTIVATIONS[form.activation]

    @cuda.jit(device=True, forceinline=True)
    def give_pair(
        w: Any, place: Any, jump: Any, first: Any, second: Any, a: Any, b: Any, old_epoch: Any,
        epoch: Any,
    ) -> None:  # fmt: skip
        out, at = array_at(w[words.OUT], (UNSEEN,), uint32), int32(place)
        if word_of(w, words.KIND) == words.ADD:
            if jump == uint32(STALE):
                a, b = take2(out, at, old_epoch)
            give2(out, at, a + first, b + second, epoch)
        elif word_of(w, words.KIND) == words.SWIGLU:
            give1(out, at, activated(first) * second, epoch)
        else:
            turned = first * a - second * b
            second = first * b + second * a
            if jump == uint32(1):
                give2(out, at, turned, second, epoch)
            else:
                give1(out, at, turned, epoch)
                give1(out, int32(at + int32(jump)), second, epoch)

    return give_pair


@cache
def finish_of(form: Form) -> Any:
    """finish(w, pair, extra, first, second, old_epoch, epoch): the two results of a pair, of any
    product but LOGITS."""
    give_pair = give_pair_of(form)

    @cuda.jit(device=True, forceinline=True)
    def finish(
        w: Any, pair: Any, extra: Any, first: Any, second: Any, old_epoch: Any, epoch: Any
    ) -> None:  # fmt: skip
        place, jump, a, b = place_of(w, pair, extra, old_epoch)
        if place != uint32(NOWHERE):
            first, second = first + extra.bias_first, second + extra.bias_second
            a, b = uint_as_float(a), uint_as_float(b)
            give_pair(w, place, jump, first, second, a, b, old_epoch, epoch)

    return finish
