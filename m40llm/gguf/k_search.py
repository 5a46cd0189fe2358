"""Scale and minimum of each run of a K-quant: the search of llama.cpp's reference.

What ggml-quants.c calls make_qkx2_quants (with minimums) and make_qx_quants (without), for all
runs at once. Sums over a run are in the same order, and grids are tried in the same order, so
that a tie is decided alike. Arrays are float32[run_dim, n_runs, n_blocks]; results, and all
sums over a run, are [n_runs, n_blocks].
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Scheme:
    """How a type divides a block, and what its bits can hold."""

    run_dim: int
    levels: tuple[int, int]  # least and greatest
    codes: tuple[int, int]  # of scales; those of minimums start at 0
    offsets: tuple[float, ...]  # a grid each: it has so many levels more than there are

    @property
    def has_minimums(self) -> bool:
        return self.levels[0] == 0


def search_with_minimums(scheme: Scheme, x: Floats, importance: Floats) -> tuple[Floats, Floats]:
    """Scale and minimum of each run: the grid of least weighted squares.

    A grid goes from the best minimum so far to the largest weight. Its levels fixed, scale and
    minimum follow by weighted least squares. The minimum, which is subtracted, is not negative.
    """
    greatest, minimum = x.max(axis=0), -np.minimum(x.min(axis=0), 0)
    sum_w, sum_x = importance.sum(axis=0), (importance * x).sum(axis=0)
    scale, least = np.zeros_like(greatest), np.full_like(greatest, np.inf)
    for offset in (None, *scheme.offsets):
        steps = np.float32(offset or 0.0) + np.float32(scheme.levels[1])
        per_weight = over(steps, greatest + minimum)
        level = x + minimum
        level *= per_weight
        np.clip(np.rint(level, out=level), *scheme.levels, out=level)
        if offset is None:  # the first grid as it is; each run's error is below infinity
            new_scale, new_minimum = over(np.float32(1), per_weight), minimum
        else:
            new_scale, new_minimum = _least_squares(x, importance, level, sum_w, sum_x)
        level *= new_scale
        level -= new_minimum
        level -= x
        level *= level
        level *= importance
        error = level.sum(axis=0)
        better = error < least  # never where least squares have no solution: NaN
        least = np.where(better, error, least)
        scale = np.where(better, new_scale, scale)
        minimum = np.where(better, new_minimum, minimum)
    return scale, minimum


def _least_squares(
    x: Floats, importance: Floats, level: Floats, sum_w: Floats, sum_x: Floats
) -> tuple[Floats, Floats]:
    """Scale and minimum for given levels; NaN where any scale would do, as in a run of zeros."""
    weighted = importance * level
    sum_l, sum_lx = weighted.sum(axis=0), (weighted * x).sum(axis=0)
    weighted *= level
    sum_ll = weighted.sum(axis=0)
    det = sum_w * sum_ll - sum_l * sum_l
    det = np.where(det > 0, det, np.float32(np.nan))
    scale, minimum = (sum_w * sum_lx - sum_x * sum_l) / det, (sum_l * sum_lx - sum_ll * sum_x) / det
    is_above = minimum < 0  # a grid that would start above zero starts at zero
    return np.where(is_above, sum_lx / sum_ll, scale), np.where(is_above, np.float32(0), minimum)


def search_without_minimums(scheme: Scheme, x: Floats, importance: Floats) -> Floats:
    """Scale of each run: of grids whose least level is about the largest weight, signs aside."""
    top, weighted = largest(x), importance * x
    scale, most = np.zeros_like(top), np.zeros_like(top)
    for offset in scheme.offsets:
        level = x * over(np.float32(scheme.levels[0]) - np.float32(offset), top)
        np.clip(np.rint(level, out=level), *scheme.levels, out=level)
        sum_lx = (weighted * level).sum(axis=0)
        level *= importance * level
        sum_ll = level.sum(axis=0)
        better = sum_lx * sum_lx > most * sum_ll
        scale = np.where(better, sum_lx / sum_ll, scale)
        most = np.where(better, scale * sum_lx, most)  # what it takes off the weighted squares
    return scale


def over(a: Any, b: Floats) -> Floats:
    """a / b, and 0 where b is 0: a run of zeros has a scale of zero."""
    quotient: Floats = np.divide(a, b, out=np.zeros_like(b), where=b != 0)
    return quotient


def largest(x: Floats) -> Floats:
    """The value farthest from zero along the first axis, with its sign."""
    at = np.abs(x).argmax(axis=0, keepdims=True)
    value: Floats = np.take_along_axis(x, at, axis=0)[0]
    return value
