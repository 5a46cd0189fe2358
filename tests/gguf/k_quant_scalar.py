"""What llama.cpp's reference makes of one block in Q4_K, Q5_K or Q6_K, a weight at a time.

Plain Python in FP64, for tests: a list of 256 weights comes back as the block has them. It shares
no code with m40llm.gguf.k_quants. FP16 steps are rounded as FP16; all else is wider than in C, so
that two grids of all but the same error may change places.
"""

import math
import struct
from collections.abc import Sequence

Run = Sequence[float]


def scalar_block(type_name: str, block: Run) -> list[float]:
    if type_name == "Q6_K":
        return _without_minimums(block)
    n_bits, first, n_grids = {"Q4_K": (4, -1.0, 21), "Q5_K": (5, -0.5, 16)}[type_name]
    offsets = [first + 0.1 * i for i in range(n_grids)]
    return _with_minimums(block, 2**n_bits - 1, offsets)


def _with_minimums(block: Run, top: int, offsets: Run) -> list[float]:
    runs = [block[at : at + 32] for at in range(0, 256, 32)]
    found = [_affine_grid(run, top, offsets) for run in runs]
    scales, d = _six_bits([scale for scale, _ in found])
    minimums, dmin = _six_bits([minimum for _, minimum in found])
    again: list[float] = []
    for run, scale, minimum in zip(runs, scales, minimums, strict=True):
        step, below = d * scale, dmin * minimum
        for x in run:
            level = _clamp((x + below) / step, 0, top) if step else 0
            again.append(level * step - below)
    return again


def _affine_grid(run: Run, top: int, offsets: Run) -> tuple[float, float]:
    """The scale and minimum of least weighted error. A grid starts at the best one's minimum."""
    rms = math.sqrt(sum(x * x for x in run) / len(run))
    weight = [abs(x) + rms for x in run]
    low, high = min(0.0, *run), max(run)
    if low == high:
        return 0.0, -low

    def levels(n_steps: float) -> list[int]:
        return [_clamp((x - low) * n_steps / (high - low), 0, top) for x in run]

    def error(at: list[int], scale: float, start: float) -> float:
        terms = zip(weight, at, run, strict=True)
        return sum(w * (scale * level + start - x) ** 2 for w, level, x in terms)

    scale = (high - low) / top
    least = error(levels(top), scale, low)
    for offset in offsets:
        at = levels(top + offset)
        fitted = _line(weight, at, run)
        if fitted is not None and (now := error(at, *fitted)) < least:
            least, (scale, low) = now, fitted
    return scale, -low


def _line(weight: Run, at: list[int], run: Run) -> tuple[float, float] | None:
    """Weighted least squares of run ~ scale * at + start, start <= 0."""
    w, wl, wx = sum(weight), _dot(weight, at), _dot(weight, run)
    wll, wlx = _dot(weight, at, at), _dot(weight, at, run)
    det = w * wll - wl * wl
    if det <= 0:
        return None
    if (start := (wll * wx - wl * wlx) / det) > 0:
        return wlx / wll, 0.0
    return (w * wlx - wx * wl) / det, start


def _six_bits(values: Run) -> tuple[list[int], float]:
    largest = max(values)
    if largest <= 0:
        return [0] * len(values), 0.0
    return [min(63, round(63 / largest * value)) for value in values], _fp16(largest / 63)


def _without_minimums(block: Run) -> list[float]:
    runs = [block[at : at + 16] for at in range(0, 256, 16)]
    scales = [_symmetric_grid(run) for run in runs]
    largest = max(scales, key=abs)
    if not largest:
        return [0.0] * 256
    d = _fp16(largest / -128)
    again: list[float] = []
    for run, scale in zip(runs, scales, strict=True):
        step = d * min(127, round(-128 / largest * scale))
        again += [step * _clamp(x / step, -32, 31) if step else 0.0 for x in run]
    return again


def _symmetric_grid(run: Run) -> float:
    """The scale that takes most off the sum of squares, weighted by squares."""
    peak = max(run, key=abs)
    if not peak:
        return 0.0
    weight = [x * x for x in run]
    best, most = 0.0, 0.0
    for tenths in sorted(range(-9, 10), key=lambda tenths: tenths != 0):  # 0 first
        at = [_clamp(-(32 + 0.1 * tenths) / peak * x, -32, 31) for x in run]
        lx, ll = _dot(weight, at, run), _dot(weight, at, at)
        if ll > 0 and lx * lx / ll > most:
            best, most = lx / ll, lx * lx / ll
    return best


def _dot(*factors: Run) -> float:
    return sum(math.prod(terms) for terms in zip(*factors, strict=True))


def _clamp(value: float, least: int, greatest: int) -> int:
    return max(least, min(greatest, round(value)))


def _fp16(value: float) -> float:
    return float(struct.unpack("<e", struct.pack("<e", value))[0])
