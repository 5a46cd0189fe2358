"""What the targets of the matrix products share: contents by type, and how they are compared."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as GGMLType

from m40llm import reference
from m40llm.fuzz.bounds import UNIT_ROUNDOFF, assert_within
from m40llm.fuzz.contents import integers, normals
from m40llm.fuzz.matmul import error_bound, integer_blocks, normal_blocks, planes_and_weights
from m40llm.gguf.blocks import FORMATS
from m40llm.kernels.layouts import DENSE

EXACT_TERMS = 1024  # of x that are not zero: 63 * 127 (Q6_K) of them stay below 2^24


def row_cols(ggml_type: str, n_units: int) -> int:
    """Columns of about 32 * n_units: whole blocks; of dense types, 16 bytes at a time."""
    block = FORMATS[GGMLType[ggml_type]].n_weights
    if block == 1:
        return n_units * (4 if ggml_type == "F32" else 8)
    return max(n_units * 32 // block, 1) * block


@dataclass(frozen=True)
class Product:
    """A matrix on the device, vectors, and what out should be; exact where `is_exact`."""

    w: Any
    weights: Any
    data: Any
    x: Any
    is_exact: bool

    def check(self, got: Any, added: Any = 0) -> None:
        """Compare with the reference + added; with == where all are whole numbers."""
        expected = reference.matmul(self.weights, self.x) + added
        if self.is_exact:
            np.testing.assert_array_equal(got, expected)
        else:
            bound = error_bound(GGMLType[self.w.type.name], self.data, self.x)
            # Bias and what was there, of at most 4 each: one more rounding each.
            if np.ndim(added):
                bound = bound + 2 * UNIT_ROUNDOFF * (np.abs(expected) + 8 + bound)
            assert_within(got, expected, bound)


def drawn(
    card: Any, rng: np.random.Generator, ggml_type: str, n_tokens: int, n_rows: int, n_cols: int,
    *, is_exact: bool,
) -> Product:  # fmt: skip
    """Whole numbers, or ordinary weights and vectors of any magnitude."""
    kind = GGMLType[ggml_type]
    if is_exact:
        data = integer_blocks(rng, kind, n_rows, n_cols)
        x = integers(rng, n_tokens, n_cols, most=4 if kind in DENSE else 1)
        x[:, rng.permutation(n_cols)[EXACT_TERMS:]] = 0
    else:
        data = normal_blocks(rng, kind, n_rows, n_cols)
        x = normals(rng, n_tokens, n_cols) * np.float32(2.0 ** rng.integers(-20, 20))
    w, weights = planes_and_weights(card, kind, data, n_cols)
    return Product(w, weights, data, x, is_exact)


def extras(
    rng: np.random.Generator, n_tokens: int, n_rows: int, has_bias: bool, accumulate: bool
) -> tuple[Any, Any, Any]:
    """(bias or None, what out holds before or None, their sum)."""
    bias = integers(rng, n_rows) if has_bias else None
    before = integers(rng, n_tokens, n_rows) if accumulate else None
    added = (0 if bias is None else bias) + (0 if before is None else before)
    return bias, before, added
