"""Quantised weights as the GPU reads them: GGUF blocks taken apart into planes, and put back.

A block of a file mixes quants, scales and minimums in 18 to 210 bytes, so that no 16-byte load of
it is aligned. Here each kind lies in an array of its own, a row of the matrix in a row of each:

    quants   uint32   Q8_0: byte j is quant j + 128; all others: 16 bytes for 32 weights, byte j
                      is the low nibble of quant j with that of quant 16 + j above it
    highs    uint32   of 32 weights, for word w = 0..3 of their nibbles and byte k = 0..3 of it,
                      `low` is quant 4w + k and `high` is quant 16 + 4w + k:
                      Q5_*: bit 8k + 2w is the fifth bit of `low`, the next one that of `high`
                      Q6_K: word w / 2, bits 8k + 4 (w % 2): two bits of `low`, two of `high`
                      None for the other types
    scales   uint16   Q4_0, Q5_0, Q8_0: FP16 d of 32 weights
                      Q6_K, 9 of 256 weights: 8 times two int8 scales of 16 weights, then FP16 d
             uint32   Q4_1, Q5_1: FP16 d of 32 weights, FP16 m above it
                      Q4_K, Q5_K, 4 of 256 weights: d | dmin << 16; low nibbles of 8 scales; low
                      nibbles of 8 minimums; nibble s: high bits of scale s | of minimum s << 2

A warp's 32 loads of 16 bytes of quants are 512 contiguous bytes. The bytes are as many as the
file's: nothing is rounded, nothing padded, and `to_blocks` gives back the file's, bit for bit.
F16 and F32 are quants alone: 4 bytes a word, as they lie in the file.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from gguf import GGMLQuantizationType as GGMLType
from numpy.typing import NDArray

from m40llm.errors import KernelContractError
from m40llm.gguf.blocks import FORMATS, row_bytes
from m40llm.kernels.contract import check_array

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Layout:
    """Where a block of a quantised type keeps what (ggml-common.h), as slices of its bytes.

    n_bits  of a quant; high bits lie apart from the nibbles
    head    FP16 scales
    sub     scales of parts of the block
    """

    n_bits: int
    head: slice
    quants: slice
    highs: slice | None = None
    sub: slice | None = None


LAYOUTS: Final = {
    GGMLType.Q4_0: Layout(4, head=slice(0, 2), quants=slice(2, 18)),
    GGMLType.Q4_1: Layout(4, head=slice(0, 4), quants=slice(4, 20)),
    GGMLType.Q5_0: Layout(5, head=slice(0, 2), highs=slice(2, 6), quants=slice(6, 22)),
    GGMLType.Q5_1: Layout(5, head=slice(0, 4), highs=slice(4, 8), quants=slice(8, 24)),
    GGMLType.Q8_0: Layout(8, head=slice(0, 2), quants=slice(2, 34)),
    GGMLType.Q4_K: Layout(4, head=slice(0, 4), sub=slice(4, 16), quants=slice(16, 144)),
    GGMLType.Q5_K: Layout(
        5, head=slice(0, 4), sub=slice(4, 16), highs=slice(16, 48), quants=slice(48, 176)
    ),
    GGMLType.Q6_K: Layout(
        6, quants=slice(0, 128), highs=slice(128, 192), sub=slice(192, 208), head=slice(208, 210)
    ),
}
DENSE: Final = (GGMLType.F32, GGMLType.F16)
_BYTES_OF_QUANTS: Final = {GGMLType.Q4_K: 32, GGMLType.Q5_K: 32, GGMLType.Q6_K: 64}


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
        highs = _highs_plane(layout.n_bits, _high_bits(type, blocks[:, layout.highs]))
        highs = highs.reshape(n_rows, -1).view("<u4")
    scales = _scales_plane(type, blocks).reshape(n_rows, -1)
    scales = scales.view("<u2" if _scale_width(type) == 2 else "<u4")
    return Planes(type, n_cols, quants, highs, scales)


def check_planes(w: Planes) -> None:
    """KernelContractError unless the planes have the types and shapes of their type and width."""
    n_bytes = row_bytes(w.type, w.n_cols)
    if w.type in DENSE:
        if n_bytes % 16:
            raise KernelContractError(f"w: {w.type.name}[*, {w.n_cols}] has rows off 16 bytes")
        check_array("w.quants", w.quants, np.uint32, (None, n_bytes // 4))
        return
    n_bits, n_units, width = LAYOUTS[w.type].n_bits, w.n_cols // 32, _scale_width(w.type)
    n_quants, n_highs = n_units * (8 if n_bits == 8 else 4), n_units * (n_bits - 4)
    rest = n_bytes - 4 * n_quants - (4 * n_highs if w.highs is not None else 0)
    check_array("w.quants", w.quants, np.uint32, (None, n_quants))
    check_array("w.highs", w.highs, np.uint32, (w.n_rows, n_highs), optional=n_bits in (4, 8))
    dtype = np.uint16 if width == 2 else np.uint32
    check_array("w.scales", w.scales, dtype, (w.n_rows, rest // width))


def to_blocks(planes: Planes) -> Bytes:
    """The file's bytes, uint8[n_rows, row_bytes]: the inverse of `from_blocks`."""
    type, n_rows = planes.type, planes.n_rows
    if type in DENSE:
        return np.asarray(planes.quants).view(np.uint8).reshape(n_rows, -1)
    layout, block = LAYOUTS[type], FORMATS[type]
    n_blocks = n_rows * (planes.n_cols // block.n_weights)
    blocks = np.empty((n_blocks, block.n_bytes), np.uint8)
    quants = np.asarray(planes.quants).view(np.uint8).reshape(n_blocks, -1)
    if type == GGMLType.Q8_0:
        blocks[:, layout.quants] = quants ^ 0x80
    else:
        nibbles = split_fields(quants.reshape(n_blocks, -1, 16), 4)
        per_run = _BYTES_OF_QUANTS.get(type, 16)
        joined = join_fields(nibbles.reshape(n_blocks, -1, 2, per_run), 4)
        blocks[:, layout.quants] = joined.reshape(n_blocks, -1)
    if layout.highs is not None:
        highs = np.asarray(planes.highs).view(np.uint8)
        bits = _bits_of_highs_plane(layout.n_bits, highs, block.n_weights)
        blocks[:, layout.highs] = _join_high_bits(type, bits)
    _put_scales(type, blocks, np.asarray(planes.scales).view(np.uint8).reshape(n_blocks, -1))
    return blocks.reshape(n_rows, -1)


def split_fields(data: Bytes, n_bits: int) -> Bytes:
    """Fields of n_bits, lowest first: uint8[..., n] -> uint8[..., 8 / n_bits, n]."""
    shifts = np.arange(0, 8, n_bits, dtype=np.uint8)[:, None]
    return (data[..., None, :] >> shifts) & np.uint8((1 << n_bits) - 1)


def join_fields(fields: Bytes, n_bits: int) -> Bytes:
    """The inverse of split_fields: uint8[..., 8 / n_bits, n] -> uint8[..., n]."""
    shifts = np.arange(0, 8, n_bits, dtype=np.uint8)[:, None]
    joined: Bytes = np.bitwise_or.reduce(fields << shifts, axis=-2)
    return joined


def _quants_plane(type: GGMLType, blocks: Bytes) -> Bytes:
    stored = blocks[:, LAYOUTS[type].quants]
    if type == GGMLType.Q8_0:
        return stored ^ np.uint8(0x80)
    per_run = _BYTES_OF_QUANTS.get(type, 16)
    if per_run == 16:  # low nibbles are weights 0..15, high ones 16..31: as wanted
        return stored
    nibbles = split_fields(stored.reshape(len(blocks), -1, per_run), 4)
    return join_fields(nibbles.reshape(len(blocks), -1, 2, 16), 4)


def _high_bits(type: GGMLType, stored: Bytes) -> Bytes:
    """The bits above the nibbles, one quant a byte, in the order of the weights."""
    n_blocks = len(stored)
    if type == GGMLType.Q6_K:
        return split_fields(stored.reshape(n_blocks, 2, 32), 2).reshape(n_blocks, -1)
    if type == GGMLType.Q5_K:
        return split_fields(stored, 1).reshape(n_blocks, -1)
    return np.unpackbits(np.ascontiguousarray(stored), axis=1, bitorder="little")


def _join_high_bits(type: GGMLType, bits: Bytes) -> Bytes:
    n_blocks = len(bits)
    if type == GGMLType.Q6_K:
        return join_fields(bits.reshape(n_blocks, 2, 4, 32), 2).reshape(n_blocks, -1)
    if type == GGMLType.Q5_K:
        return join_fields(bits.reshape(n_blocks, 8, 32), 1)
    return np.packbits(bits, axis=1, bitorder="little")


def _highs_plane(n_bits: int, bits: Bytes) -> Bytes:
    """[..., half of 32, word, byte] -> fields of the bytes of one word (Q5) or of two (Q6)."""
    n_words = n_bits - 4
    split = bits.reshape(-1, 2, n_words, 4 // n_words, 4)  # half, word of highs, word in it, byte
    fields = split.transpose(0, 2, 3, 1, 4).reshape(-1, n_words, 8 // n_words, 4)
    return join_fields(fields, n_words)


def _bits_of_highs_plane(n_bits: int, plane: Bytes, n_weights: int) -> Bytes:
    n_words = n_bits - 4
    fields = split_fields(plane.reshape(-1, n_words, 4), n_words)
    split = fields.reshape(-1, n_words, 4 // n_words, 2, 4).transpose(0, 3, 1, 2, 4)
    return split.reshape(-1, n_weights)


def _scale_width(type: GGMLType) -> int:
    """Bytes of an element of the plane of scales."""
    head = LAYOUTS[type].head
    return int(head.stop - head.start)


def _scales_plane(type: GGMLType, blocks: Bytes) -> Bytes:
    layout = LAYOUTS[type]
    head = blocks[:, layout.head]
    if layout.sub is None:
        return np.ascontiguousarray(head)
    sub = blocks[:, layout.sub]
    if type == GGMLType.Q6_K:
        return np.concatenate((sub, head), axis=1)
    first, second, mixed = sub[:, 0:4], sub[:, 4:8], sub[:, 8:12]
    scales = np.concatenate((first & 63, mixed & 15 | first >> 6 << 4), axis=1)
    minimums = np.concatenate((second & 63, mixed >> 4 | second >> 6 << 4), axis=1)
    words = (scales & 15, minimums & 15, scales >> 4 | minimums >> 4 << 2)
    return np.concatenate((head, *(_pair_up(word) for word in words)), axis=1)


def _pair_up(nibbles: NDArray[Any]) -> Bytes:
    """uint8[n, 8] -> uint8[n, 4]: nibble s of a word is number s."""
    pairs: Bytes = nibbles[:, 0::2] | nibbles[:, 1::2] << np.uint8(4)
    return pairs


def _put_scales(type: GGMLType, blocks: Bytes, plane: Bytes) -> None:
    """The inverse of _scales_plane, into the blocks."""
    layout = LAYOUTS[type]
    if layout.sub is None:
        blocks[:, layout.head] = plane
    elif type == GGMLType.Q6_K:
        blocks[:, layout.sub], blocks[:, layout.head] = plane[:, :16], plane[:, 16:]
    else:
        blocks[:, layout.head] = plane[:, :4]
        low, low_min, high = (
            split_fields(plane[:, at : at + 4], 4).transpose(0, 2, 1).reshape(-1, 8)
            for at in (4, 8, 12)
        )
        scales, minimums = low | (high & 3) << 4, low_min | high >> 2 << 4
        first = scales[:, :4] | scales[:, 4:] >> 4 << 6
        second = minimums[:, :4] | minimums[:, 4:] >> 4 << 6
        mixed = scales[:, 4:] & 15 | minimums[:, 4:] << 4
        blocks[:, layout.sub] = np.concatenate((first, second, mixed), axis=1)
