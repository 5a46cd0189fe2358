"""Attention as an instruction of the decode program, with norms of Q and K and without."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from m40llm import reference
from m40llm.fuzz.attention import Case, poisoned_cache
from m40llm.fuzz.bounds import turned_norm_bound
from m40llm.fuzz.contents import normals
from m40llm.fuzz.definition import target
from m40llm.fuzz.instruction_alone import EPS, Given, attend_alone, form_of
from m40llm.fuzz.strategies import choices, seeds, sizes
from m40llm.kernels.attention_keys import keys_a_pass
from m40llm.kernels.program import attend as kernels
from m40llm.kernels.program.attend_shape import MIN_PASSES
from m40llm.kernels.program.form import N_WARPS, Form

Array = NDArray[Any]
# n_heads, n_kv_heads, head_dim, rope_dim, layout, norms: a kernel each
FORMS = choices(
    [
        (3, 1, 16, 12, "interleaved", "head"),
        (4, 2, 32, 32, "half", "row"),
        (4, 2, 32, 32, "half", "none"),
    ]
)
MAX_SEQ_LEN = 640
WINDOWS = choices([0, 0, 1, 100, 600])


def drawn(form: Form, n_keys: int, window: int, spread: float, seed: int) -> Given:
    """The newest key and value in qkv alone, the cache poisoned from there on."""
    rng = np.random.default_rng(seed)
    shape = (form.n_kv_heads, MAX_SEQ_LEN, form.head_dim)
    k, v = (poisoned_cache(rng, [n_keys - 1], *shape) for _ in "kv")
    angles = np.outer(np.arange(MAX_SEQ_LEN), 0.1 ** np.arange(form.rope_dim // 2))
    widths = [form.head_dim] * 2 if form.qk_norm != "row" else [form.q_dim, form.kv_dim]
    norms = [1 + normals(rng, width, spread=0.3) for width in widths]
    return Given(
        normals(rng, form.q_dim + 2 * form.kv_dim),
        *(k, v, n_keys - 1, spread / form.head_dim**0.5, window),
        *(norm.astype(np.float32) for norm in norms),
        *(of(angles).astype(np.float32) for of in (np.cos, np.sin)),
    )


def turned(form: Form, given: Given, x: Array, norm: Array) -> tuple[Array, Array]:
    """(x [n_heads, head_dim] as attention takes it, how far FP32 may stray from it)."""
    if form.qk_norm == "none":
        return x, np.zeros_like(x)
    normed = reference.rms_norm(x.reshape(-1, norm.size), norm, EPS).reshape(x.shape)
    pos, tables = np.array([given.pos], np.int32), (given.cos, given.sin)
    found = reference.rope(normed[None], pos, *tables, form.rope_layout)[0]
    return found, np.broadcast_to(turned_norm_bound(normed, norm.size), x.shape)


def check_attend(card: Any, attend_of: Any, form: Form, given: Given, n_blocks: int) -> None:
    """One attention: its output, and what it has appended."""
    heads = given.qkv.reshape(-1, form.head_dim)
    q, k, v = np.split(heads, [form.n_heads, form.n_heads + form.n_kv_heads])
    q, q_error = turned(form, given, q, given.q_norm)
    k, k_error = turned(form, given, k, given.k_norm)
    out, k_after, v_after = attend_alone(card, attend_of, form, given, n_blocks)
    appended = k_after[0, :, given.pos]
    least, most = (k - k_error).astype(np.float16), (k + k_error).astype(np.float16)
    assert ((least <= appended) & (appended <= most)).all(), "the newest key is another one"
    expected_k, expected_v = given.k.copy(), given.v.copy()
    expected_k[0, :, given.pos], expected_v[0, :, given.pos] = appended, v
    np.testing.assert_array_equal(k_after, expected_k)  # nothing else is touched
    np.testing.assert_array_equal(v_after, expected_v)
    case = Case(
        *(q[None], k_after, v_after, np.zeros(1, np.int32), np.array([given.pos], np.int32)),
        *(given.scale, given.window),
        q_error=q_error[None],
    )
    case.check(out[None])


@target(
    ops=kernels,
    form=FORMS,
    n_keys=sizes(MIN_PASSES * keys_a_pass(32, N_WARPS), MAX_SEQ_LEN),
    window=WINDOWS,
    n_blocks=choices([1, 2, 3, 8, 14]),
    spread=choices([1.0, 30.0]),  # of scores: those of 30 make sums be rescaled
    seed=seeds(),
)
def program_attention(
    card: Any, ops: Any, form: tuple[Any, ...], n_keys: int, window: int, n_blocks: int,
    spread: float, seed: int,
) -> None:  # fmt: skip
    made = form_of(*form)
    check_attend(card, ops.attend_of, made, drawn(made, n_keys, window, spread, seed), n_blocks)
