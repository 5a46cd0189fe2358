"""Where the blocks of a GGUF file keep what, for every type that kernels read (ggml-common.h)."""

from dataclasses import dataclass
from typing import Final

from gguf import GGMLQuantizationType as GGMLType


@dataclass(frozen=True)
class Layout:
    """A block of a quantised type, as slices of its bytes.

    n_bits      of a quant
    head        the scale of the block, or of a run of its weights: see plane_of_scales.py
    sub         scales of parts of the block
    highs       bits of the quants above the lowest field_bits
    field_bits  of a quant in `quants`; the rest of it lies in `highs`
    run_bytes   of quants: all lowest fields of a run come before all next ones, in weights' order
    """

    n_bits: int
    head: slice
    quants: slice
    highs: slice | None = None
    sub: slice | None = None
    field_bits: int = 4
    run_bytes: int = 16

    @property
    def high_bits(self) -> int:
        """Bits of a quant in the plane of high bits."""
        return self.n_bits - self.field_bits

    @property
    def unit_words(self) -> int:
        """Words of 32 weights in the plane of quants."""
        return self.field_bits

    @property
    def scale_bytes(self) -> int:
        """Of an element of the plane of scales: as wide as the head, 4 at most."""
        return min(int(self.head.stop - self.head.start), 4)


LAYOUTS: Final = {
    GGMLType.Q4_0: Layout(4, head=slice(0, 2), quants=slice(2, 18)),
    GGMLType.Q4_1: Layout(4, head=slice(0, 4), quants=slice(4, 20)),
    GGMLType.Q5_0: Layout(5, head=slice(0, 2), highs=slice(2, 6), quants=slice(6, 22)),
    GGMLType.Q5_1: Layout(5, head=slice(0, 4), highs=slice(4, 8), quants=slice(8, 24)),
    GGMLType.Q8_0: Layout(8, head=slice(0, 2), quants=slice(2, 34), field_bits=8),
    GGMLType.Q2_K: Layout(
        2, sub=slice(0, 16), quants=slice(16, 80), head=slice(80, 84), field_bits=2, run_bytes=32
    ),
    GGMLType.Q3_K: Layout(
        3,
        highs=slice(0, 32),
        quants=slice(32, 96),
        sub=slice(96, 108),
        head=slice(108, 110),
        field_bits=2,
        run_bytes=32,
    ),
    GGMLType.Q4_K: Layout(
        4, head=slice(0, 4), sub=slice(4, 16), quants=slice(16, 144), run_bytes=32
    ),
    GGMLType.Q5_K: Layout(
        5,
        head=slice(0, 4),
        sub=slice(4, 16),
        highs=slice(16, 48),
        quants=slice(48, 176),
        run_bytes=32,
    ),
    GGMLType.Q6_K: Layout(
        6,
        quants=slice(0, 128),
        highs=slice(128, 192),
        sub=slice(192, 208),
        head=slice(208, 210),
        run_bytes=64,
    ),
    GGMLType.IQ4_NL: Layout(4, head=slice(0, 2), quants=slice(2, 18)),
    GGMLType.IQ4_XS: Layout(4, head=slice(0, 8), quants=slice(8, 136)),
    GGMLType.MXFP4: Layout(4, head=slice(0, 1), quants=slice(1, 17)),
}
DENSE: Final = (GGMLType.F32, GGMLType.F16)
# Types whose quant is the number of a value in a table of 16: VALUES_OF[type][quant].
_OF_IQ4: Final = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
VALUES_OF: Final = {
    GGMLType.IQ4_NL: _OF_IQ4,
    GGMLType.IQ4_XS: _OF_IQ4,
}
