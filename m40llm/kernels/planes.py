"""Quantised weights as the GPU reads them: GGUF blocks taken apart into planes, and put back.

A block of a file mixes quants, scales and minimums in 17 to 210 bytes, so that no 16-byte load of
it is aligned. Here each kind lies in an array of its own, a row of the matrix in a row of each:

    quants   uint32   of 32 weights, quant 4g + k of them (group g, k = 0..3) is
                      Q8_0: byte k of word g, plus 128
                      nibbles: byte k of word g % 4, the low nibble for g < 4, else the high one
                      Q2_K, Q3_K: byte k of word g % 2, bits 2 * (g / 2) and up
                      IQ4_NL, IQ4_XS: nibble 4 * (g % 2) + k of word g / 2, as tables.py wants it
                      MXFP4: words g / 4 * 2 and the next, as e2m1.py wants them
    highs    uint32   of 32 weights, what does not fit there of the same quant:
                      Q3_K, Q5_*: one word, bit 8k + 2 * (g % 4) + g / 4
                      Q6_K: two words, number g % 4 / 2, bits 8k + 4 * (g % 2) + 2 * (g / 4) and up
                      None for the other types
    scales   uint8, uint16 or uint32: see plane_of_scales.py

A warp's 32 loads of 16 bytes of quants are 512 contiguous bytes. The bytes are as many as the
file's: nothing is rounded, nothing padded, and `to_blocks` gives back the file's, bit for bit.
F16 and F32 are quants alone: 4 bytes a word, as they lie in the file.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
from gguf import GGMLQuantizationType as GGMLType
from numpy.typing import NDArray

from m40llm.errors import KernelContractError
from m40llm.gguf.blocks import FORMATS, join_fields, row_bytes, split_fields
from m40llm.kernels import e2m1
from m40llm.kernels.contract import check_array
from m40llm.kernels.layouts import DENSE, LAYOUTS, VALUES_OF, Layout
from m40llm.kernels.plane_of_scales import put_scales, scales_plane
from m40llm.kernels.tables import numbers_of, selectors_of

Bytes = NDArray[np.uint8]
_WORD: Final = np.dtype(np.uint32)


@dataclass(frozen=True)
class Planes:
    """A weight matrix [n_rows, n_cols] in planes, on the host or on a device.

    quants, highs, scales  [n_rows, *] in C order; None where the type has no such plane
    """

    type: GGMLType
    n_cols: int
    quants: Any
    highs: Any = None
    scales: Any = None

    @property
    def n_rows(self) -> int:
        return int(self.quants.shape[0])

    def __getitem__(self, rows: slice) -> "Planes":
        """Some of the rows: views."""
        highs, scales = self.highs, self.scales
        return Planes(
            self.type,
            self.n_cols,
            self.quants[rows],
            None if highs is None else highs[rows],
            None if scales is None else scales[rows],
        )


def from_blocks(type: GGMLType, n_rows: int, n_cols: int, data: Bytes) -> Planes:
    """Planes of a matrix of the file: uint8[n_rows * row_bytes], in any shape.

    F16 needs n_cols in multiples of 8, F32 of 4: rows must be a multiple of 16 bytes.
    Raises KernelContractError for other widths and for types without planes.
    """
    if type not in LAYOUTS and type not in DENSE:
        raise KernelContractError(f"type: expected one with planes, got {type.name}")
    n_bytes = row_bytes(type, n_cols)
    if type in DENSE:
        if n_bytes % 16:
            raise KernelContractError(
                f"{type.name}[{n_rows}, {n_cols}]: expected rows of a multiple of 16 bytes"
            )
        return Planes(type, n_cols, np.ascontiguousarray(data).reshape(n_rows, -1).view("<u4"))
    layout, n_weights = LAYOUTS[type], FORMATS[type].n_weights
    blocks = data.reshape(n_rows * (n_cols // n_weights), FORMATS[type].n_bytes)
    quants = np.ascontiguousarray(_quants_plane(type, blocks)).reshape(n_rows, -1).view("<u4")
    highs = None
    if layout.highs is not None:
        highs = _highs_plane(layout, _high_bits(type, blocks[:, layout.highs]))
        highs = highs.reshape(n_rows, -1).view("<u4")
    scales = scales_plane(type, blocks).reshape(n_rows, -1).view(f"<u{layout.scale_bytes}")
    return Planes(type, n_cols, quants, highs, scales)


def check_planes(w: Planes) -> None:
    """KernelContractError unless the planes have the types and shapes of their type and width."""
    n_quants, n_highs, n_scales, scale_type = _widths(w.type, w.n_cols)
    check_array("w.quants", w.quants, _WORD, (None, n_quants))
    if scale_type is not None:
        check_array("w.highs", w.highs, _WORD, (w.n_rows, n_highs), optional=not n_highs)
        check_array("w.scales", w.scales, scale_type, (w.n_rows, n_scales))


@cache
def _widths(type: GGMLType, n_cols: int) -> tuple[int, int, int, np.dtype[Any] | None]:
    """(quants, highs, scales, type of these) of a row; remembered: every launch asks for them."""
    n_bytes = row_bytes(type, n_cols)
    if type in DENSE:
        if n_bytes % 16:
            raise KernelContractError(f"w: {type.name}[*, {n_cols}] has rows off 16 bytes")
        return n_bytes // 4, 0, 0, None
    layout, n_units = LAYOUTS[type], n_cols // 32
    n_quants, n_highs = n_units * layout.unit_words, n_units * layout.high_bits
    n_scales = (n_bytes - 4 * (n_quants + n_highs)) // layout.scale_bytes
    return n_quants, n_highs, n_scales, np.dtype(f"<u{layout.scale_bytes}")


def to_blocks(planes: Planes) -> Bytes:
    """The file's bytes, uint8[n_rows, row_bytes]: the inverse of `from_blocks`."""
    type, n_rows = planes.type, planes.n_rows
    if type in DENSE:
        return np.asarray(planes.quants).view(np.uint8).reshape(n_rows, -1)
    layout, block = LAYOUTS[type], FORMATS[type]
    n_blocks = n_rows * (planes.n_cols // block.n_weights)
    blocks = np.empty((n_blocks, block.n_bytes), np.uint8)
    quants = np.asarray(planes.quants).view(np.uint8).reshape(n_blocks, -1)
    blocks[:, layout.quants] = _quants_of_plane(type, quants)
    if layout.highs is not None:
        highs = np.asarray(planes.highs).view(np.uint8)
        bits = _bits_of_highs_plane(layout, highs, block.n_weights)
        blocks[:, layout.highs] = _join_high_bits(type, bits)
    put_scales(type, blocks, np.asarray(planes.scales).view(np.uint8).reshape(n_blocks, -1))
    return blocks.reshape(n_rows, -1)


def _quants_plane(type: GGMLType, blocks: Bytes) -> Bytes:
    layout = LAYOUTS[type]
    stored = blocks[:, layout.quants]
    if type == GGMLType.Q8_0:
        return stored ^ np.uint8(0x80)
    if type == GGMLType.MXFP4:
        return e2m1.pack(split_fields(stored, 4).reshape(-1, 16)).view(np.uint8)
    quants = _regrouped(stored, layout.field_bits, layout.run_bytes, _plane_run(type))
    return selectors_of(quants) if type in VALUES_OF else quants


def _quants_of_plane(type: GGMLType, plane: Bytes) -> Bytes:
    """The inverse, uint8[n_blocks, *]."""
    layout = LAYOUTS[type]
    if type == GGMLType.Q8_0:
        return plane ^ np.uint8(0x80)
    if type == GGMLType.MXFP4:
        return join_fields(e2m1.unpack(plane.view("<u4").reshape(-1, 2)).reshape(-1, 2, 16), 4)
    quants = numbers_of(plane) if type in VALUES_OF else plane
    return _regrouped(quants, layout.field_bits, _plane_run(type), layout.run_bytes)


def _plane_run(type: GGMLType) -> int:
    """Bytes of a run of quants in the plane; see Layout.run_bytes."""
    return 1 if type in VALUES_OF else 4 * LAYOUTS[type].field_bits


def _regrouped(quants: Bytes, field_bits: int, run: int, new_run: int) -> Bytes:
    """Fields of runs of so many bytes, uint8[n_blocks, *], in runs of another length."""
    if run == new_run:
        return quants
    n_blocks, n_fields = len(quants), 8 // field_bits
    fields = split_fields(quants.reshape(n_blocks, -1, run), field_bits)
    joined = join_fields(fields.reshape(n_blocks, -1, n_fields, new_run), field_bits)
    return joined.reshape(n_blocks, -1)


def _high_bits(type: GGMLType, stored: Bytes) -> Bytes:
    """The bits above the nibbles, one quant a byte, in the order of the weights."""
    n_blocks = len(stored)
    if type == GGMLType.Q6_K:
        return split_fields(stored.reshape(n_blocks, 2, 32), 2).reshape(n_blocks, -1)
    if type in (GGMLType.Q3_K, GGMLType.Q5_K):
        return split_fields(stored, 1).reshape(n_blocks, -1)
    return np.unpackbits(np.ascontiguousarray(stored), axis=1, bitorder="little")


def _join_high_bits(type: GGMLType, bits: Bytes) -> Bytes:
    n_blocks = len(bits)
    if type == GGMLType.Q6_K:
        return join_fields(bits.reshape(n_blocks, 2, 4, 32), 2).reshape(n_blocks, -1)
    if type in (GGMLType.Q3_K, GGMLType.Q5_K):
        return join_fields(bits.reshape(n_blocks, 8, 32), 1)
    return np.packbits(bits, axis=1, bitorder="little")


def _highs_plane(layout: Layout, bits: Bytes) -> Bytes:
    """[..., half of 32, word, byte] -> fields of the bytes of one word, or of two (Q6_K)."""
    n_words = layout.high_bits
    split = bits.reshape(-1, 2, n_words, 4 // n_words, 4)  # half, word of highs, word in it, byte
    fields = split.transpose(0, 2, 3, 1, 4).reshape(-1, n_words, 8 // n_words, 4)
    return join_fields(fields, n_words)


def _bits_of_highs_plane(layout: Layout, plane: Bytes, n_weights: int) -> Bytes:
    n_words = layout.high_bits
    fields = split_fields(plane.reshape(-1, n_words, 4), n_words)
    split = fields.reshape(-1, n_words, 4 // n_words, 2, 4).transpose(0, 3, 1, 2, 4)
    return split.reshape(-1, n_weights)
