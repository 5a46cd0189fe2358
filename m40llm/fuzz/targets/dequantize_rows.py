"""Every weight of a matrix in planes, as the products' kernels read them: bit for bit."""

from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as GGMLType

from m40llm import reference
from m40llm.fuzz.contents import assert_same_bits
from m40llm.fuzz.definition import target
from m40llm.fuzz.matmul import QUANTISED, upload
from m40llm.fuzz.strategies import choices, seeds, sizes
from m40llm.fuzz.targets.matmul_forms import row_cols
from m40llm.gguf.blocks import row_bytes
from m40llm.kernels import dequantize_rows as kernels
from m40llm.kernels.layouts import DENSE
from m40llm.kernels.planes import from_blocks

TYPES = choices([ggml_type.name for ggml_type in (*DENSE, *QUANTISED)])


@target(
    ops=kernels,
    ggml_type=TYPES,
    n_rows=sizes(2, 5),
    n_before=sizes(2, 3),
    n_units=sizes(32, 40),
    seed=seeds(),
)
def dequantize_rows(
    card: Any, ops: Any, ggml_type: str, n_rows: int, n_before: int, n_units: int, seed: int
) -> None:
    """Any bytes at all are weights; the first rows are left out."""
    rng, kind = np.random.default_rng(seed), GGMLType[ggml_type]
    n_cols, n_all = row_cols(ggml_type, n_units), n_before + n_rows
    data = rng.integers(0, 256, (n_all, row_bytes(kind, n_cols)), np.uint8)
    w = upload(card, from_blocks(kind, n_all, n_cols, data))
    out = card.guarded((n_rows, n_cols))
    ops.dequantize_rows(w, n_before, out, stream=card)
    assert_same_bits(card.read(out), reference.dequantize_rows(kind, data, n_before))
