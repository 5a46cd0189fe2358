"""The plane of scales on the host: taken from the blocks of a file, and put back.

    uint8    MXFP4: the exponent of 32 weights
    uint16   Q4_0, Q5_0, Q8_0, IQ4_NL: FP16 d of 32 weights
             Q3_K, 7 of 256 weights: low nibbles of 16 scales; their high two bits; FP16 d
             Q6_K, 9 of 256 weights: 8 times two int8 scales of 16 weights; FP16 d
    uint32   Q4_1, Q5_1: FP16 d of 32 weights, FP16 m above it
             Q2_K, 5 of 256 weights: of each 16 a byte, scale | minimum << 4; d | dmin << 16
             Q4_K, Q5_K, 4 of 256 weights: d | dmin << 16; low nibbles of 8 scales; low nibbles of
             8 minimums; nibble s: high bits of scale s | of minimum s << 2
             IQ4_XS, 2 of 256 weights: FP16 d | high two bits of 8 scales << 16; their low nibbles

All numbers of a kind stand in the order of the weights, the first in the lowest bits.
"""

from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as GGMLType
from numpy.typing import NDArray

from m40llm.gguf.blocks import join_fields, pack_codes, split_fields
from m40llm.kernels.layouts import LAYOUTS

Bytes = NDArray[np.uint8]


def scales_plane(type: GGMLType, blocks: Bytes) -> Bytes:
    """uint8[n_blocks, *]: all of a block but its quants, in the plane's order."""
    layout = LAYOUTS[type]
    head = blocks[:, layout.head]
    if layout.sub is None:
        return np.ascontiguousarray(head)
    sub = blocks[:, layout.sub]
    if type in (GGMLType.Q2_K, GGMLType.Q6_K):
        return np.concatenate((sub, head), axis=1)
    if type == GGMLType.Q3_K:
        return np.concatenate((_sorted_q3_k(sub), head), axis=1)
    return np.concatenate((head, _sorted_k(sub)), axis=1)


def put_scales(type: GGMLType, blocks: Bytes, plane: Bytes) -> None:
    """The inverse of scales_plane, into the blocks."""
    layout = LAYOUTS[type]
    if layout.sub is None:
        blocks[:, layout.head] = plane
    elif type in (GGMLType.Q2_K, GGMLType.Q6_K):
        blocks[:, layout.sub], blocks[:, layout.head] = plane[:, :16], plane[:, 16:]
    elif type == GGMLType.Q3_K:
        blocks[:, layout.sub], blocks[:, layout.head] = _as_in_q3_k(plane[:, :12]), plane[:, 12:]
    else:
        blocks[:, layout.head], blocks[:, layout.sub] = plane[:, :4], _as_in_k(plane[:, 4:])


def _sorted_q3_k(sub: Bytes) -> Bytes:
    """Of the file: nibble k of byte i belongs to scale 8k + i, bits 2k of byte 8 + i to 4k + i."""
    low, high = split_fields(sub[:, :8], 4), split_fields(sub[:, 8:], 2)
    pairs = join_fields(low.reshape(-1, 8, 2, 1), 4)
    fours = join_fields(high.reshape(-1, 4, 4, 1), 2)
    return np.concatenate((pairs.reshape(-1, 8), fours.reshape(-1, 4)), axis=1)


def _as_in_q3_k(plane: Bytes) -> Bytes:
    low = split_fields(plane[:, :8, None], 4).reshape(-1, 2, 8)
    high = split_fields(plane[:, 8:, None], 2).reshape(-1, 4, 4)
    return np.concatenate((join_fields(low, 4), join_fields(high, 2)), axis=1)


def _sorted_k(sub: Bytes) -> Bytes:
    first, second, mixed = sub[:, 0:4], sub[:, 4:8], sub[:, 8:12]
    scales = np.concatenate((first & 63, mixed & 15 | first >> 6 << 4), axis=1)
    minimums = np.concatenate((second & 63, mixed >> 4 | second >> 6 << 4), axis=1)
    words = (scales & 15, minimums & 15, scales >> 4 | minimums >> 4 << 2)
    return np.concatenate([_pair_up(word) for word in words], axis=1)


def _pair_up(nibbles: NDArray[Any]) -> Bytes:
    """uint8[n, 8] -> uint8[n, 4]: nibble s of a word is number s."""
    pairs: Bytes = nibbles[:, 0::2] | nibbles[:, 1::2] << np.uint8(4)
    return pairs


def _as_in_k(plane: Bytes) -> Bytes:
    low, low_min, high = (
        split_fields(plane[:, at : at + 4], 4).transpose(0, 2, 1).reshape(-1, 8) for at in (0, 4, 8)
    )
    scales, minimums = low | (high & 3) << 4, low_min | high >> 2 << 4
    return pack_codes(scales, minimums)
