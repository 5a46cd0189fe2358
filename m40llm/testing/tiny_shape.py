"""A shape for m40llm.bench.synthetic that the emulator decodes in no time."""

from dataclasses import replace
from typing import Final

from m40llm.bench.shapes import SHAPES

TINY_SHAPE: Final = replace(
    SHAPES["135m"], n_layers=1, n_embd=128, n_ff=256, n_heads=2, n_kv_heads=1, vocab_size=300
)
