"""Numbers told from what only passes for one: to Python True is an int, numpy's 3 is none."""

from typing import Any, TypeGuard

import numpy as np


def is_whole(value: Any) -> TypeGuard[int]:
    """Whether it is a whole number, Python's or numpy's; no bool, and no float such as 3.0."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def is_number(value: Any) -> TypeGuard[float]:
    """Whether it is an int or a float; no bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)
