"""Attention as an instruction of the decode program, alone in a kernel: against the reference."""

from functools import cache
from typing import Any

import numpy as np
import pytest
from attention_cases import Array, Case, poisoned_cache
from gguf import GGMLQuantizationType as GGMLType
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numba import cuda, float32, int32, int64

from m40llm.device.gpu.decode import Other, Setting, encode
from m40llm.device.gpu.decode_state import new_exchange, new_state
from m40llm.kernels.contract import Kernel
from m40llm.kernels.program import words
from m40llm.kernels.program.attend import KEYS_UNIT, attend_of, split_shape
from m40llm.kernels.program.code import N_HELD, code_at
from m40llm.kernels.program.form import N_THREADS, REGISTERS, Form

MAX_SEQ_LEN = 640
EPOCH_OF_QKV, EPOCH = 3, 4  # of step 1: two instructions, of which EMBED stands for who gives Q
SHAPES = {  # n_heads, n_kv_heads, head_dim
    "8 keys a load": (4, 2, 32),
    "odd groups": (6, 2, 64),
    "padded lanes": (2, 1, 80),
    "a key a load": (2, 2, 256),
    "more lane groups than elements": (3, 1, 16),
}


def form_of(name: str) -> Form:
    n_heads, n_kv_heads, head_dim = SHAPES[name]
    rope: Any = "half"
    return Form((GGMLType.F16,), GGMLType.F16, 1, n_heads, n_kv_heads, head_dim, head_dim, rope)


@cache
def kernel_of(form: Form) -> Kernel:
    """The second of two instructions."""
    attention, n_words, n_held = attend_of(form), words.N_WORDS, N_HELD * words.N_WORDS
    n_pool = form.pool_floats

    def attend_alone(program: Any, pos: Any, seq: Any) -> None:
        pool = cuda.shared.array(n_pool, float32, alignment=16)
        held = cuda.shared.array(n_held, int64)
        slot_pos, slot_seq = cuda.shared.array(1, int32), cuda.shared.array(1, int32)
        if cuda.threadIdx.x < n_words:
            held[cuda.threadIdx.x] = program[1, cuda.threadIdx.x]
        steps = cuda.shared.array(1, int64)
        if cuda.threadIdx.x == 0:
            slot_pos[0], slot_seq[0], steps[0] = pos[0], seq[0], 1
        cuda.syncthreads()
        code = code_at(held, int32(0), int64(0), int32(2), steps)
        attention(code, slot_pos, slot_seq, pool)

    return Kernel(attend_alone, registers=REGISTERS)


def words_of(numbers: Array, epoch: int) -> Array:
    """Exchange words of float32 numbers."""
    bits = numbers.astype(np.float32).view(np.uint32)
    return np.stack([bits, np.full_like(bits, epoch)], -1)


def attend(
    launcher: Any, form: Form, case: Case, n_blocks: int, factor: float = 1.0
) -> tuple[Array, Array]:
    """(out [n_heads, head_dim], the cache's K after it), the newest key and value given with Q, the
    key `factor` times what it is in the case's cache."""
    pos, k_cache, v_cache = int(case.pos[0]), case.k.copy(), case.v.copy()
    newest = [cache[0, :, pos].astype(np.float32).reshape(1, -1) for cache in (case.k, case.v)]
    k_cache[0, :, pos], v_cache[0, :, pos] = np.nan, np.nan
    newest[0] *= np.float32(factor)
    qkv = np.concatenate([case.q.reshape(1, -1), *newest], 1)
    state, _ = new_state(launcher, form, 8, n_blocks)
    x, out = (new_exchange(launcher, 1, n) for n in (qkv.shape[1], form.q_dim))
    launcher.write(x, words_of(qkv, EPOCH_OF_QKV))
    k, v = launcher.upload(k_cache), launcher.upload(v_cache)
    instructions = [Other(words.EMBED, out=x), Other(words.ATTEND, x, out, k, v)]
    table = launcher.upload(np.zeros((8, 2), np.uint8))
    setting = Setting(form, state, table, table, 1e-5, case.scale, MAX_SEQ_LEN, case.window)
    program = launcher.upload(encode(instructions, setting))
    where = launcher.upload(case.pos), launcher.upload(case.seq)
    launcher.launch(kernel_of(form), n_blocks, N_THREADS, program, *where)
    given_out = launcher.read(out)[0]
    assert (given_out[:, 1] == EPOCH).all()
    numbers = np.ascontiguousarray(given_out[:, 0]).view(np.float32)
    return numbers.reshape(form.n_heads, form.head_dim), launcher.read(k)


def drawn(form: Form, n_keys: int, window: int, seed: int, spread: float) -> Case:
    rng = np.random.default_rng(seed)
    shape = (form.n_kv_heads, MAX_SEQ_LEN, form.head_dim)
    return Case(
        q=rng.standard_normal((1, form.n_heads, form.head_dim)).astype(np.float32),
        k=poisoned_cache(rng, [n_keys], *shape),
        v=poisoned_cache(rng, [n_keys], *shape),
        seq=np.zeros(1, np.int32),
        pos=np.array([n_keys - 1], np.int32),
        scale=spread / np.sqrt(form.head_dim),
        window=window,
    )


@pytest.mark.parametrize("name", SHAPES)
@settings(max_examples=8)
@given(
    n_keys=st.integers(1, MAX_SEQ_LEN),
    window=st.sampled_from([0, 0, 1, 100, 600]),
    n_blocks=st.integers(1, 14),
    seed=st.integers(0, 2**32 - 1),
    spread=st.sampled_from([1.0, 30.0]),  # of scores: those of 30 make sums be rescaled
)
@example(n_keys=1, window=0, n_blocks=3, seed=0, spread=1.0)  # the cache is empty
@example(n_keys=MAX_SEQ_LEN, window=0, n_blocks=14, seed=1, spread=1.0)  # all splits there are
@example(n_keys=513, window=0, n_blocks=14, seed=2, spread=1.0)  # a split of few keys
@example(n_keys=MAX_SEQ_LEN, window=0, n_blocks=1, seed=3, spread=30.0)  # rescaled again and again
def test_parity(
    launcher: Any, name: str, n_keys: int, window: int, n_blocks: int, seed: int, spread: float
) -> None:
    form = form_of(name)
    case = drawn(form, n_keys, window, seed, spread)
    out, k = attend(launcher, form, case, n_blocks)
    assert (np.abs(out - case.expected()[0]) <= case.bound()[0]).all()
    np.testing.assert_array_equal(k, case.k)  # the newest is rounded once, nothing else touched


def test_parts_are_given_through_the_exchange() -> None:
    """An empty one would be waited for for ever; so a split has keys, whatever the length."""
    form = form_of("odd groups")
    assert split_shape(form, 14) == (1, 6, 3, 66, 2)
    assert MAX_SEQ_LEN % KEYS_UNIT == 0


def test_a_key_that_fp16_cannot_hold(launcher: Any) -> None:
    """It is the largest that it can hold, here as in rope_append: infinity would make NaN."""
    form = form_of("8 keys a load")
    case = drawn(form, 5, 0, 0, 1.0)
    _, k = attend(launcher, form, case, 2, factor=1e5)
    newest = case.k[0, :, 4].astype(np.float32) * np.float32(1e5)
    np.testing.assert_array_equal(k[0, :, 4], np.clip(newest, -65504, 65504).astype(np.float16))
    assert (np.abs(newest) > 65504).any()
