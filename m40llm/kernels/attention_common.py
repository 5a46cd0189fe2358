"""What both attention kernels share: the shapes of their arguments, and how a score is scaled.

    score = scale * dot, or soft_cap * tanh(scale * dot / soft_cap)      weight = exp(score - max)

The kernels keep scores in units of ln 2, so that a weight is one exp2: `score_factors` folds
scale, soft cap and log2(e) into two factors, score / ln 2 = outer * [tanh](inner * dot).
A score that must not count is -inf, a running maximum starts at LOWEST, which is finite: a tile
that a row sees nothing of gives exp2(-inf - LOWEST) = 0 and exp2(LOWEST - LOWEST) = 1, never NaN.
"""

import math
from typing import Any, Final

import numpy as np

from m40llm.errors import KernelContractError
from m40llm.kernels.contract import check_array

HEAD_DIMS: Final = (32, 64, 80, 96, 128, 256)
TINY_HEAD_DIMS: Final = (8, 16)  # of models small enough to try things on; attention_decode only
HALVES_PER_LOAD: Final = 8  # FP16 in 16 bytes; quants in 8
QUANTS_PER_BLOCK: Final = 32  # of Q8_0
LOWEST: Final = np.float32(-3.4e38)
NEGATIVE_INFINITY: Final = np.float32(-np.inf)
NO_WINDOW: Final = np.int32(2**31 - 1)


def score_factors(scale: float, softcap: float) -> tuple[np.float32, np.float32]:
    """(inner, outer), each rounded to FP32 once; softcap 0 for none."""
    log2_e = math.log2(math.e)
    if softcap:
        return np.float32(scale / softcap), np.float32(softcap * log2_e)
    return np.float32(scale * log2_e), np.float32(1)


def window_keys(window: int) -> np.int32:
    """How many keys a row sees at most; 0 stands for all of them."""
    return np.int32(window) if window else NO_WINDOW


def check_attention(
    q: Any,
    k_cache: Any,
    v_cache: Any,
    seq: Any,
    pos: Any,
    window: int,
    softcap: float,
    out: Any,
    head_dims: tuple[int, ...] = HEAD_DIMS,
) -> None:
    """KernelContractError unless the arguments that both kernels take are as their files say."""
    check_array("k_cache", k_cache, np.float16, (None, None, None, q.shape[2]))
    check_array("v_cache", v_cache, np.float16, tuple(k_cache.shape))
    _check_rows(q, k_cache, seq, pos, window, softcap, out, head_dims)


def check_attention_q8(
    q: Any,
    k: tuple[Any, Any],
    v: tuple[Any, Any],
    seq: Any,
    pos: Any,
    window: int,
    softcap: float,
    out: Any,
) -> None:
    """The same for a cache in Q8_0; k and v are (quants, scales)."""
    head_dims = tuple(dim for dim in HEAD_DIMS if dim % QUANTS_PER_BLOCK == 0)
    check_q8_cache(k, v, (None, None, None, q.shape[2]))
    _check_rows(q, k[0], seq, pos, window, softcap, out, head_dims)


def check_q8_cache(k: tuple[Any, Any], v: tuple[Any, Any], shape: tuple[int | None, ...]) -> None:
    """KernelContractError unless these are quants of this shape, and their blocks' scales."""
    check_array("k_quants", k[0], np.int8, shape)
    whole = tuple(k[0].shape)
    if whole[-1] % QUANTS_PER_BLOCK:
        raise KernelContractError(
            f"k_quants: expected heads of whole blocks of {QUANTS_PER_BLOCK}, got {whole[-1]}"
        )
    check_array("v_quants", v[0], np.int8, whole)
    for name, scales in (("k_scales", k[1]), ("v_scales", v[1])):
        check_array(name, scales, np.float16, (*whole[:-1], whole[-1] // QUANTS_PER_BLOCK))


def _check_rows(
    q: Any, cache: Any, seq: Any, pos: Any, window: int, softcap: float, out: Any,
    head_dims: tuple[int, ...],
) -> None:  # fmt: skip
    n_tokens, n_heads, head_dim = q.shape
    if head_dim not in head_dims:
        raise KernelContractError(f"q: expected a head_dim of {head_dims}, got {head_dim}")
    check_array("q", q, np.float32, (None, None, head_dim))
    check_array("seq", seq, np.int32, (n_tokens,))
    check_array("pos", pos, np.int32, (n_tokens,))
    check_array("out", out, np.float32, (n_tokens, n_heads, head_dim))
    n_kv_heads = cache.shape[1]
    if n_kv_heads == 0 or n_heads % n_kv_heads:
        raise KernelContractError(
            f"q: {n_heads} heads are no multiple of {n_kv_heads} of the cache"
        )
    if window < 0 or softcap < 0:
        raise KernelContractError(
            f"window, softcap: expected 0 or more, got {window} and {softcap}"
        )
