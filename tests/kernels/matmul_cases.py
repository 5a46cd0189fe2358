"""Weights for the tests of the matrix products: those that fuzzing draws."""

from m40llm.fuzz.contents import integers
from m40llm.fuzz.matmul import (
    QUANTISED,
    error_bound,
    integer_blocks,
    normal_blocks,
    planes_and_weights,
    upload,
)

__all__ = [
    "QUANTISED",
    "error_bound",
    "integer_blocks",
    "integers",
    "normal_blocks",
    "planes_and_weights",
    "upload",
]
