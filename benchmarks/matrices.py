"""Weight matrices for the matrix products: any size, in no time, and checked in every element.

Rows repeat with a period that is prime, and so do the rows of x: a few are dequantised and
multiplied in FP64, and the results are those of all others, while any wrong row shows.
"""

from functools import lru_cache
from typing import Any

import numpy as np
from cases import Arrays, Buffers
from gguf import GGMLQuantizationType as GGMLType
from numpy.typing import NDArray

from m40llm.fuzz.bounds import gamma
from m40llm.fuzz.matmul import offsets
from m40llm.gguf.blocks import dequantize, row_bytes
from m40llm.kernels.planes import Planes, from_blocks
from m40llm.testing.random_blocks import random_tensor

PERIOD = 127  # of the rows of W
X_PERIOD = 61
MODELS = {  # matrices of models by their shape [n_rows, n_cols]
    "8B attn_q": (4096, 4096),
    "8B ffn_up": (14336, 4096),
    "1B attn_q": (2048, 2048),
    "1B ffn_up": (8192, 2048),
    "1B ffn_down": (2048, 8192),
    "1B output": (128256, 2048),
    "135M attn_q": (576, 576),
    "135M ffn_up": (1536, 576),
}


@lru_cache(maxsize=4)
def repeated(type: GGMLType, n_cols: int) -> tuple[Planes, NDArray[Any], NDArray[Any]]:
    """PERIOD rows: as planes, dequantised to FP64, and the magnitudes that an error scales with.

    A weight is scale * quant + offset, two terms of the sum; the offset is what the weight would
    be were its quant, as unpacked, 0.
    """
    data = random_tensor(np.random.default_rng(n_cols), (PERIOD, n_cols), 1.0, type)
    data = np.ascontiguousarray(data).view(np.uint8).reshape(PERIOD, -1)
    planes = from_blocks(type, PERIOD, n_cols, data)
    weights = dequantize(type, data).astype(np.float64)
    offset = offsets(type, data, n_cols)
    return planes, weights, np.abs(weights - offset) + np.abs(offset)


@lru_cache(maxsize=1)
def planes_of(type: GGMLType, n_rows: int, n_cols: int) -> Arrays:
    """quants, highs and scales of the whole matrix, as far as the type has them."""
    planes, rows = repeated(type, n_cols)[0], np.arange(n_rows) % PERIOD
    named = {"quants": planes.quants, "highs": planes.highs, "scales": planes.scales}
    return {name: plane[rows] for name, plane in named.items() if plane is not None}


def on_card(type: GGMLType, n_cols: int, b: Buffers) -> Planes:
    return Planes(type, n_cols, b["quants"], b.get("highs"), b.get("scales"))


def vectors(n_tokens: int, n_cols: int, dtype: Any = np.float32) -> NDArray[Any]:
    """x [n_tokens, n_cols], rows repeating with X_PERIOD."""
    few = np.random.default_rng(n_tokens).standard_normal((min(n_tokens, X_PERIOD), n_cols))
    return few.astype(dtype)[np.arange(n_tokens) % X_PERIOD]


def product_and_bound(type: GGMLType, x: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Of the rows of x and of W that are not repeats: x W^T in FP64, and FP32's error bound."""
    _, weights, magnitudes = repeated(type, x.shape[1])
    few = x[:X_PERIOD].astype(np.float64)
    return few @ weights.T, gamma(x.shape[1] + 8) * (np.abs(few) @ magnitudes.T)


def share_of_repeats(
    out: NDArray[Any], expected: NDArray[Any], bound: NDArray[Any], first_row: int = 0
) -> float:
    """The largest error as a share of its bound, over all of out; inf for NaN."""
    columns = (first_row + np.arange(out.shape[1])) % PERIOD
    worst = 0.0
    for token, row in enumerate(out):
        at = token % X_PERIOD
        share = np.abs(row - expected[at, columns]) / bound[at, columns]
        worst = max(worst, float(np.where(np.isnan(share), np.inf, share).max()))
    return worst


def weight_bytes(type: GGMLType, n_rows: int, n_cols: int) -> int:
    return n_rows * row_bytes(type, n_cols)
