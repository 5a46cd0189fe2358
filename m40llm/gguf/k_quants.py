"""Q4_K, Q5_K and Q6_K from FP32 weights, with no larger an error than llama.cpp's.

A block is 256 weights in runs that share a scale, in Q4_K and Q5_K also a minimum:

    Q4_K, Q5_K    8 runs of 32   weight = d * scale * level - dmin * minimum    codes of 6 bits
    Q6_K         16 runs of 16   weight = d * scale * level                     codes of int8

d and dmin are FP16. The method is that of llama.cpp's reference (ggml-quants.c: make_qkx2_quants
and make_qx_quants), its sums in the same order: each run tries a few grids, takes the one of
least weighted squares, and its scale is rounded to a code. Then come other codes, d and dmin;
they are kept only where they lower the plain sum of squares and do not raise the weighted one,
so that neither ends above what the reference leaves.

Inside, arrays are float32[run_dim, n_runs, n_blocks], so that sums over a run add whole vectors;
each block is divided by a power of two, which is exact and keeps squares within FP32.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from gguf import GGMLQuantizationType as GGMLType
from numpy.typing import NDArray

from m40llm.errors import KernelContractError
from m40llm.gguf.blocks import row_bytes
from m40llm.gguf.k_pack import BLOCK_DIM, pack
from m40llm.gguf.k_search import (
    Floats,
    Scheme,
    largest,
    over,
    search_with_minimums,
    search_without_minimums,
)

Bytes = NDArray[np.uint8]

_BLOCKS_AT_ONCE: Final = 1024  # 1 MB an array, of which there are some ten
_LEAST_FP16: Final = 2.0**-24

_SCHEMES: Final = {
    GGMLType.Q4_K: Scheme(32, (0, 15), (0, 63), tuple(0.1 * i - 1.0 for i in range(21))),
    GGMLType.Q5_K: Scheme(32, (0, 31), (0, 63), tuple(0.1 * i - 0.5 for i in range(16))),
    GGMLType.Q6_K: Scheme(
        16, (-32, 31), (-128, 127), (0.0, *(0.1 * i for i in range(-9, 10) if i))
    ),
}
K_QUANTS: Final = tuple(_SCHEMES)


@dataclass
class _Fit:
    """Some blocks, what each run wants, and the codes that stand for it so far."""

    scheme: Scheme
    exponent: NDArray[np.int32]  # [n_blocks]; all but codes is divided by 2^exponent
    x: Floats  # [run_dim, n_runs, n_blocks]
    importance: Floats  # as x
    scale: Floats  # [n_runs, n_blocks], as wanted; minimum too
    minimum: Floats
    d: Floats  # [n_blocks], as FP16 holds it; dmin too
    dmin: Floats
    scales: Floats  # [n_runs, n_blocks], whole numbers; minimums too
    minimums: Floats
    plain: Floats  # [n_runs, n_blocks]: sum of squares; weighted too
    weighted: Floats


def quantize_k(weights: Floats, type: GGMLType) -> Bytes:
    """Blocks of whole rows: float32[..., n] -> uint8[..., row_bytes], n a multiple of 256.

    A weight too large for the type leaves a block that dequantises to infinity or NaN.

    Raises KernelContractError for another dtype or type, or a weight that is no finite number;
    ModelFileError where n is no multiple of 256.
    """
    if type not in _SCHEMES or weights.dtype != np.float32 or weights.ndim == 0:
        wanted = ", ".join(known.name for known in K_QUANTS)
        raise KernelContractError(
            f"weights: expected float32[..., n] for one of {wanted}, "
            f"got {weights.dtype}{list(weights.shape)} for {type.name}"
        )
    if not np.isfinite(weights).all():
        raise KernelContractError("weights: expected finite numbers, got NaN or infinity")
    n_bytes, n_row_bytes = row_bytes(type, BLOCK_DIM), row_bytes(type, weights.shape[-1])
    blocks = weights.reshape(weights.size // BLOCK_DIM, BLOCK_DIM)
    out = np.empty((len(blocks), n_bytes), np.uint8)
    for first in range(0, len(blocks), _BLOCKS_AT_ONCE):
        piece = slice(first, first + _BLOCKS_AT_ONCE)
        out[piece] = _quantized(blocks[piece], type)
    return out.reshape(*weights.shape[:-1], n_row_bytes)


def _quantized(blocks: Floats, type: GGMLType) -> Bytes:
    scheme = _SCHEMES[type]
    with np.errstate(all="ignore"):  # beyond FP16, or a sum of zero, whose quotient is not taken
        exponent = np.frexp(np.abs(blocks).max(axis=1))[1]
        runs = np.ldexp(blocks, -exponent[:, None]).reshape(len(blocks), -1, scheme.run_dim)
        fit = _reference_fit(scheme, exponent, np.ascontiguousarray(runs.transpose(2, 1, 0)))
        _refine_small_steps(fit)
        _refine_codes(fit)
        _refine_steps(fit)
        levels = _levels(fit, fit.d * fit.scales, fit.dmin * fit.minimums) - scheme.levels[0]
        in_order = levels.astype(np.uint8).transpose(2, 1, 0).reshape(len(blocks), BLOCK_DIM)
        d, dmin = (np.ldexp(step, exponent).astype("<f2") for step in (fit.d, fit.dmin))
    return pack(type, d, dmin, fit.scales.T, fit.minimums.T, in_order)


# The method of llama.cpp


def _reference_fit(scheme: Scheme, exponent: NDArray[np.int32], x: Floats) -> _Fit:
    """What llama.cpp's reference makes of the blocks.

    A weight's importance is its size plus the root mean square of its run, or without minimums
    its square.
    """
    if scheme.has_minimums:
        importance = np.abs(x) + np.sqrt((x * x).mean(axis=0))
        scale, minimum = search_with_minimums(scheme, x, importance)
        d, scales = _coded(scale, scheme.codes[1], scheme.codes[1])
    else:
        importance = x * x
        scale = search_without_minimums(scheme, x, importance)
        minimum = np.zeros_like(scale)
        d, scales = _coded(scale, *scheme.codes)
    dmin, minimums = _coded(minimum, scheme.codes[1], scheme.codes[1])
    d, dmin = _fp16(d, exponent), _fp16(dmin, exponent)
    unknown = np.full_like(scale, np.inf)
    fit = _Fit(
        *(scheme, exponent, x, importance, scale, minimum),
        *(d, dmin, scales, minimums, unknown, unknown),
    )
    _keep_better(fit, d, dmin, scales, minimums, whole_blocks=True)
    return fit


def _coded(values: Floats, code_of_largest: int, greatest: int) -> tuple[Floats, Floats]:
    """A block's step and its runs' codes: [n_blocks], [n_runs, n_blocks]."""
    most, code = largest(values), np.float32(code_of_largest)
    codes = np.minimum(np.rint(values * over(code, most)), np.float32(greatest))
    return most / code, codes


# What goes beyond it


def _refine_small_steps(fit: _Fit) -> None:
    """Codes for d and dmin as FP16 holds them: near 2^-24 that is far from what was wanted."""
    least_step = np.ldexp(np.float32(_LEAST_FP16), -fit.exponent)
    d = np.where(np.abs(fit.d) < least_step, least_step, fit.d)
    dmin = np.maximum(fit.dmin, least_step)
    least, greatest = fit.scheme.codes
    scales = np.clip(np.rint(fit.scale / d), least, greatest)
    minimums = np.clip(np.rint(fit.minimum / dmin), 0, greatest)
    _keep_better(fit, d, dmin, scales, minimums, whole_blocks=True)


def _refine_codes(fit: _Fit) -> None:
    """Each run: the codes next to those of its scale and minimum."""
    least, greatest = fit.scheme.codes
    scales, minimums = fit.scales, fit.minimums
    for scale_step, minimum_step in _neighbours(fit.scheme):
        near_scales = np.clip(scales + np.float32(scale_step), least, greatest)
        near_minimums = np.clip(minimums + np.float32(minimum_step), 0, greatest)
        _keep_better(fit, fit.d, fit.dmin, near_scales, near_minimums, whole_blocks=False)


def _neighbours(scheme: Scheme) -> Iterator[tuple[int, int]]:
    for scale_step in (0, -1, 1):
        for minimum_step in (0, -1, 1) if scheme.has_minimums else (0,):
            if scale_step or minimum_step:
                yield scale_step, minimum_step


def _refine_steps(fit: _Fit) -> None:
    """Each block: d and dmin of least squares for its levels and codes."""
    level = _levels(fit, fit.d * fit.scales, fit.dmin * fit.minimums)
    level *= fit.scales
    sum_ss, sum_sx = (level * level).sum(axis=(0, 1)), (level * fit.x).sum(axis=(0, 1))
    sum_sm = (level.sum(axis=0) * fit.minimums).sum(axis=0)
    sum_mm = fit.scheme.run_dim * (fit.minimums * fit.minimums).sum(axis=0)
    sum_mx = (fit.x.sum(axis=0) * fit.minimums).sum(axis=0)
    det = sum_ss * sum_mm - sum_sm * sum_sm
    is_joint = det > np.float32(1e-6) * sum_ss * sum_mm
    dmin = np.where(is_joint, (sum_sm * sum_sx - sum_ss * sum_mx) / det, fit.dmin)
    dmin = _fp16(np.maximum(dmin, 0), fit.exponent)
    d = _fp16(over(sum_sx + dmin * sum_sm, sum_ss), fit.exponent)
    _keep_better(fit, d, dmin, fit.scales, fit.minimums, whole_blocks=True)


def _keep_better(
    fit: _Fit, d: Floats, dmin: Floats, scales: Floats, minimums: Floats, *, whole_blocks: bool
) -> None:
    """Takes the blocks, or runs of the same d and dmin, whose error is less: never where NaN."""
    plain, weighted = _errors(fit, d * scales, dmin * minimums)
    if whole_blocks:
        is_better = plain.sum(axis=0) < fit.plain.sum(axis=0)
        is_better &= weighted.sum(axis=0) <= fit.weighted.sum(axis=0)
        fit.d, fit.dmin = np.where(is_better, d, fit.d), np.where(is_better, dmin, fit.dmin)
    else:
        is_better = (plain < fit.plain) & (weighted <= fit.weighted)
    fit.scales = np.where(is_better, scales, fit.scales)
    fit.minimums = np.where(is_better, minimums, fit.minimums)
    fit.plain = np.where(is_better, plain, fit.plain)
    fit.weighted = np.where(is_better, weighted, fit.weighted)


def _errors(fit: _Fit, scale: Floats, minimum: Floats) -> tuple[Floats, Floats]:
    """Sums of squares of each run, plain and weighted: [n_runs, n_blocks]."""
    off = _levels(fit, scale, minimum)
    off *= scale
    off -= minimum
    off -= fit.x
    off *= off
    plain = off.sum(axis=0)
    off *= fit.importance
    return plain, off.sum(axis=0)


def _levels(fit: _Fit, scale: Floats, minimum: Floats) -> Floats:
    level = fit.x + minimum
    level /= np.where(scale == 0, np.float32(np.inf), scale)  # a scale of 0 has the level 0
    np.rint(level, out=level)
    return np.clip(level, *fit.scheme.levels, out=level)


def _fp16(x: Floats, exponent: NDArray[np.int32]) -> Floats:
    """As FP16 keeps x * 2^exponent, over 2^exponent again."""
    return np.ldexp(np.ldexp(x, exponent).astype(np.float16).astype(np.float32), -exponent)
