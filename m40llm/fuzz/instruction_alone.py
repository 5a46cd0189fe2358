"""Instructions of the decode program, each alone in a kernel: the second one of two, in step 1.

What it reads from the exchange is there before it begins.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as GGMLType
from numba import cuda, float32, int32, int64
from numpy.typing import NDArray

from m40llm.device.gpu.bound import address
from m40llm.kernels.attention_common import score_factors, window_keys
from m40llm.kernels.contract import Kernel
from m40llm.kernels.program import words
from m40llm.kernels.program.attend_shape import split_shape
from m40llm.kernels.program.code import N_HELD, code_at
from m40llm.kernels.program.form import N_THREADS, N_WARPS, REGISTERS, Form

Array = NDArray[Any]
EPOCH_OF_X, EPOCH = 3, 4  # of the first instruction, who gives X, and of the second
EPS = float(np.float32(1e-5))


def form_of(
    n_heads: int, n_kv_heads: int, head_dim: int, rope_dim: int, layout: Any, qk_norm: Any
) -> Form:
    """One sequence; the types of matrices do not matter."""
    f16 = GGMLType.F16
    shape = (n_heads, n_kv_heads, head_dim, rope_dim)
    return Form((f16,), f16, 1, *shape, layout, qk_norm=qk_norm)


@dataclass
class Given:
    """What the instruction finds.

    qkv           float32[q_dim + 2 kv_dim], the newest key and value in it
    k, v          the cache, float16[1, n_kv_heads, max_seq_len, head_dim]
    q_norm ...    weights of norms, where the form has some
    cos, sin      float32[max_seq_len, rope_dim / 2]
    """

    qkv: Array
    k: Array
    v: Array
    pos: int
    scale: float
    window: int
    q_norm: Array
    k_norm: Array
    cos: Array
    sin: Array


def attend_alone(
    card: Any, attend_of: Callable[[Form], Any], form: Form, given: Given, n_blocks: int
) -> tuple[Array, Array, Array]:
    """(out [n_heads, head_dim], the cache's K and V after it)."""
    x, angles = given_words(card, given.qkv), card.upload(np.stack([given.cos, given.sin], -1))
    out, shape = given_words(card, np.zeros(form.q_dim), epoch=0), split_shape(form, n_blocks)
    partial = card.upload(np.zeros(shape, np.uint32), read_only=False)
    k, v = (card.upload(cache, read_only=False) for cache in (given.k, given.v))
    norms = [card.upload(norm) for norm in (given.q_norm, given.k_norm)]
    program = program_of(
        card,
        {
            words.OP: words.ATTEND,
            words.X: x,
            words.OUT: out,
            words.OUT_COLS: form.q_dim,
            words.K_CACHE: k,
            words.V_CACHE: v,
            words.MAX_SEQ_LEN: given.k.shape[2],
            words.PARTIAL: partial,
            words.N_SPLITS: shape[2],
            words.ANGLES: angles,
            words.Q_NORM: norms[0],
            words.K_NORM: norms[1],
            words.INNER: bits(score_factors(given.scale, 0.0)[0]),
            words.WINDOW: int(window_keys(given.window)),
        },
    )
    pos = card.upload(np.array([given.pos], np.int32))
    card.launch(_attention_of(attend_of, form), n_blocks, N_THREADS, program, pos)
    numbers = taken(card, out).reshape(form.n_heads, form.head_dim)
    return numbers, card.read(k), card.read(v)


def bits(number: Any) -> int:
    """Of a float32."""
    return int(np.float32(number).view(np.uint32))


def given_words(card: Any, numbers: Array, epoch: int = EPOCH_OF_X) -> Any:
    """A vector in the exchange."""
    values = numbers.astype(np.float32).reshape(-1).view(np.uint32)
    return card.upload(np.stack([values, np.full_like(values, epoch)], -1), read_only=False)


def taken(card: Any, out: Any) -> Array:
    """What has been given there by the instruction: all of it."""
    found = card.read(out)
    assert (found[:, 1] == EPOCH).all(), "not all of the output was given"
    return np.ascontiguousarray(found[:, 0]).view(np.float32)


def program_of(card: Any, those: Mapping[int, Any]) -> Any:
    """int64[2, N_WORDS], with the words of the second instruction: numbers, and buffers."""
    program = np.zeros((2, words.N_WORDS), np.int64)
    program[1, words.PC] = program[1, words.WRITER] = 1
    program[1, words.EPS] = bits(EPS)
    for word, value in those.items():
        program[1, word] = value if isinstance(value, int) else address(value)
    return card.upload(program)


@cache
def _attention_of(attend_of: Callable[[Form], Any], form: Form) -> Kernel:
    attention, n_words, n_held = attend_of(form), words.N_WORDS, N_HELD * words.N_WORDS
    n_pool = form.pool_floats

    def attend_kernel(program: Any, pos: Any) -> None:
        pool = cuda.shared.array(n_pool, float32, alignment=16)
        held = cuda.shared.array(n_held, int64)
        slot_pos, slot_seq = cuda.shared.array(1, int32), cuda.shared.array(1, int32)
        steps = cuda.shared.array(1, int64)
        if cuda.threadIdx.x < n_words:
            held[cuda.threadIdx.x] = program[1, cuda.threadIdx.x]
        if cuda.threadIdx.x == 0:
            slot_pos[0], slot_seq[0], steps[0] = pos[0], 0, 1
        cuda.syncthreads()
        code = code_at(held, int32(0), int64(0), int32(2), steps)
        attention(code, slot_pos, slot_seq, pool)

    return Kernel(attend_kernel, registers=REGISTERS)


@cache
def add_normed_kernel(add_normed_of: Callable[[Form], Any], form: Form) -> Kernel:
    add_normed, n_words, n_held = add_normed_of(form), words.N_WORDS, N_HELD * words.N_WORDS
    n_pool, n_squares = form.pool_floats, form.n_seqs * N_WARPS

    def add_normed_alone(program: Any) -> None:
        pool = cuda.shared.array(n_pool, float32, alignment=16)
        squares = cuda.shared.array(n_squares, float32)
        held, steps = cuda.shared.array(n_held, int64), cuda.shared.array(1, int64)
        thread = int32(cuda.threadIdx.x)
        if thread < n_held:
            held[thread] = program[1, thread] if thread < n_words else int64(0)
        if thread == 0:
            steps[0] = 1
        cuda.syncthreads()
        code = code_at(held, int32(0), int64(0), int32(2), steps)
        add_normed(code, squares, pool, int32(0))

    return Kernel(add_normed_alone, registers=REGISTERS)
