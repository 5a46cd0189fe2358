"""Append to a KV cache in Q8_0: each 32 elements of a head as whole numbers times one FP16 scale.

d = max |x| / 127, quant = round(x / d), halves away from zero: the arithmetic is FP32's, step by
step that of gguf.quants, so that blocks can be compared bit for bit.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_BLOCK: Final = 32
_LARGEST: Final = np.float32(65504)  # FP16


def quantise_q8(x: NDArray[Any]) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """x [..., n] -> (quants [..., n], scales [..., n / 32])

    Where FP16 cannot hold d, it is the largest number that it has; where FP32 cannot hold 1 / d,
    quants and scale are 0; NaN makes its block's scale NaN.
    """
    blocks = x.astype(np.float32).reshape(*x.shape[:-1], -1, _BLOCK)
    is_damaged = np.isnan(blocks).any(axis=-1)
    blocks = np.nan_to_num(blocks, nan=0, posinf=np.inf, neginf=-np.inf)
    d = np.minimum(np.abs(blocks).max(axis=-1) / np.float32(127), _LARGEST)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / d
    inverse = np.where(np.isfinite(inverse), inverse, np.float32(0))[..., None]
    with np.errstate(invalid="ignore"):
        magnitude = np.minimum(np.abs(blocks * inverse), np.float32(127))
    floor = np.floor(magnitude)
    whole = floor + (magnitude - floor >= 0.5)
    quants = np.copysign(whole, blocks).astype(np.int8)
    scales = np.where(is_damaged, np.float32(np.nan), d).astype(np.float16)
    return quants.reshape(x.shape), scales


def dequantise_q8(quants: NDArray[np.int8], scales: NDArray[np.float16]) -> NDArray[np.float32]:
    """Their products, exactly: float32, shape of the quants."""
    blocks = quants.reshape(*scales.shape, _BLOCK).astype(np.float32)
    return np.asarray((blocks * scales.astype(np.float32)[..., None]).reshape(quants.shape))


def append_q8(
    k: NDArray[Any],
    quants: NDArray[np.int8],
    scales: NDArray[np.float16],
    seq: NDArray[Any],
    pos: NDArray[Any],
) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """k [n_tokens, n_kv_heads, head_dim], quants [n_seqs, n_kv_heads, max_seq_len, head_dim]

    Returns the cache after the append, without rows at position -1, which are idle.
    """
    quants, scales = quants.copy(), scales.copy()
    for t in np.flatnonzero(pos >= 0):
        quants[seq[t], :, pos[t]], scales[seq[t], :, pos[t]] = quantise_q8(k[t])
    return quants, scales
