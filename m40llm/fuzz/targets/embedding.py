"""embedding, of every block format, and take_rows: bit for bit as gguf.quants defines them."""

from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as GGMLType

from m40llm.fuzz.contents import assert_same_bits, integers
from m40llm.fuzz.definition import target
from m40llm.fuzz.strategies import choices, seeds, sizes
from m40llm.gguf.blocks import FORMATS, dequantize
from m40llm.kernels import embedding as kernels
from m40llm.kernels.quant_blocks import WEIGHT_OF

N_ROWS = 7  # of the table
TYPES = [ggml_type.name for ggml_type in WEIGHT_OF]


@target(
    ops=kernels, ggml_type=choices(TYPES), n_blocks=sizes(8, 9), n_tokens=sizes(2, 5), seed=seeds()
)
def embedding(card: Any, ops: Any, ggml_type: str, n_blocks: int, n_tokens: int, seed: int) -> None:
    """Random bytes are valid blocks, with scales of every size, infinity and NaN included."""
    rng, kind = np.random.default_rng(seed), GGMLType[ggml_type]
    block = FORMATS[kind]
    table = rng.integers(0, 256, (N_ROWS, n_blocks * block.n_bytes), np.uint8)
    ids = rng.integers(0, N_ROWS, n_tokens).astype(np.int32)
    out = card.guarded((n_tokens, n_blocks * block.n_weights))
    ops.embedding(card.upload(table), kind, card.upload(ids), out, stream=card)
    assert_same_bits(card.read(out), dequantize(kind, table)[ids])


@target(ops=kernels, n_rows=sizes(2, 6), n_embd=sizes(256, 600), seed=seeds())
def take_rows(card: Any, ops: Any, n_rows: int, n_embd: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = integers(rng, N_ROWS, n_embd, most=99)
    rows = rng.integers(0, N_ROWS, n_rows).astype(np.int32)
    out = card.guarded((n_rows, n_embd))
    ops.take_rows(card.upload(x), card.upload(rows), out, stream=card)
    np.testing.assert_array_equal(card.read(out), x[rows])
