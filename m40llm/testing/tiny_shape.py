"""A shape for m40llm.bench.synthetic that the emulator decodes in no time."""

from typing import Final

from m40llm.bench.shapes import SHAPES

TINY_SHAPE: Final = SHAPES["tiny"]
