"""Attention as an instruction of the decode program, alone in a kernel, one sequence.

What stands in the exchange before it is the query, and the newest key and value.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as GGMLType
from numba import cuda, float32, int32, int64
from numpy.typing import NDArray

from m40llm.device.gpu.decode import address
from m40llm.kernels.attention_common import score_factors, window_keys
from m40llm.kernels.contract import Kernel
from m40llm.kernels.program import words
from m40llm.kernels.program.attend_shape import split_shape
from m40llm.kernels.program.code import N_HELD, code_at
from m40llm.kernels.program.form import N_THREADS, REGISTERS, Form

Array = NDArray[Any]
EPOCH_OF_QKV, EPOCH = 3, 4  # of step 1: two instructions, of which the first stands for who gives Q
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
    words_of_x = np.stack([_bits(given.qkv), np.full(given.qkv.size, EPOCH_OF_QKV, np.uint32)], -1)
    x, angles = card.upload(words_of_x), card.upload(np.stack([given.cos, given.sin], -1))
    out = card.upload(np.zeros((form.q_dim, 2), np.uint32), read_only=False)
    parts = split_shape(form, n_blocks)
    partial = card.upload(np.zeros(parts, np.uint32), read_only=False)
    k, v = (card.upload(cache, read_only=False) for cache in (given.k, given.v))
    norms = [card.upload(norm) for norm in (given.q_norm, given.k_norm)]
    program = np.zeros((2, words.N_WORDS), np.int64)
    buffers = (
        *((words.X, x), (words.OUT, out), (words.K_CACHE, k), (words.V_CACHE, v)),
        *((words.PARTIAL, partial), (words.ANGLES, angles)),
        *((words.Q_NORM, norms[0]), (words.K_NORM, norms[1])),
    )
    numbers = (
        *((words.PC, 1), (words.OP, words.ATTEND), (words.N_SPLITS, parts[2])),
        *((words.OUT_COLS, form.q_dim), (words.MAX_SEQ_LEN, given.k.shape[2])),
        (words.INNER, int(_bits(score_factors(given.scale, 0.0)[0])[0])),
        *((words.EPS, int(_bits(EPS)[0])), (words.WINDOW, int(window_keys(given.window)))),
    )
    for word, number in (*((w, address(b)) for w, b in buffers), *numbers):
        program[1, word] = number
    code, pos = card.upload(program), card.upload(np.array([given.pos], np.int32))
    card.launch(_kernel_of(attend_of, form), n_blocks, N_THREADS, code, pos)
    found = card.read(out)
    assert (found[:, 1] == EPOCH).all(), "not all of the output was given"
    numbers_out = np.ascontiguousarray(found[:, 0]).view(np.float32)
    return numbers_out.reshape(form.n_heads, form.head_dim), card.read(k), card.read(v)


def _bits(numbers: Any) -> Array:
    return np.atleast_1d(np.asarray(numbers, np.float32)).view(np.uint32)


@cache
def _kernel_of(attend_of: Callable[[Form], Any], form: Form) -> Kernel:
    """The second of two instructions."""
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
