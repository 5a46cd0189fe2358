"""The bytes of Q4_K, Q5_K and Q6_K blocks from their codes, as ggml-common.h lays them out.

Q4_K   d, dmin: FP16 | scales and minimums: 12 | low 4 bits: 128                     144 bytes
Q5_K   d, dmin: FP16 | scales and minimums: 12 | fifth bits: 32 | low 4 bits: 128    176 bytes
Q6_K   low 4 bits: 128 | high 2 bits: 64 | scales: int8[16] | d: FP16                210 bytes
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from gguf import GGMLQuantizationType as GGMLType
from numpy.typing import NDArray

from m40llm.gguf.blocks import join_fields, pack_codes

Bytes = NDArray[np.uint8]

BLOCK_DIM: Final = 256


@dataclass(frozen=True)
class _Blocks:
    d: NDArray[np.float16]  # [n_blocks]; dmin too
    dmin: NDArray[np.float16]
    scales: NDArray[Any]  # [n_blocks, n_runs], whole numbers; minimums too
    minimums: NDArray[Any]
    levels: Bytes  # [n_blocks, 256], from 0


def pack(
    type: GGMLType,
    d: NDArray[np.float16],
    dmin: NDArray[np.float16],
    scales: NDArray[Any],
    minimums: NDArray[Any],
    levels: Bytes,
) -> Bytes:
    """uint8[n_blocks, n_bytes] of d, dmin [n_blocks], codes [n_blocks, n_runs], levels [., 256].

    Levels count from 0, which is -32 in Q6_K; that type has no dmin and no minimums.
    """
    parts = _PACKERS[type](_Blocks(d, dmin, scales, minimums, levels))
    packed: Bytes = np.concatenate(parts, axis=1)
    return packed


def _pack_q4_k(blocks: _Blocks) -> list[NDArray[Any]]:
    return [*_pack_steps(blocks), _pack_low_bits(blocks.levels)]


def _pack_q5_k(blocks: _Blocks) -> list[NDArray[Any]]:
    """Byte i of the fifth bits has, from its least bit on, weight i of each run."""
    fifth = np.packbits(blocks.levels.reshape(-1, 8, 32) >> 4, axis=1, bitorder="little")
    return [*_pack_steps(blocks), fifth[:, 0], _pack_low_bits(blocks.levels & 15)]


def _pack_q6_k(blocks: _Blocks) -> list[NDArray[Any]]:
    quarter = blocks.levels.reshape(-1, 2, 4, 32)  # of each half
    low = (quarter[:, :, :2] & 15) | (quarter[:, :, 2:] & 15) << 4
    high = join_fields(quarter >> np.uint8(4), 2)
    scales = np.ascontiguousarray(blocks.scales.astype(np.int8)).view(np.uint8)
    return [low.reshape(-1, 128), high.reshape(-1, 64), scales, _fp16_bytes(blocks.d)]


def _pack_low_bits(levels: NDArray[Any]) -> Bytes:
    """Runs in pairs: the first of each has the low halves of 32 bytes, the second the high."""
    return join_fields(levels.reshape(-1, 4, 2, 32), 4).reshape(-1, 128)


def _pack_steps(blocks: _Blocks) -> list[NDArray[Any]]:
    codes = pack_codes(blocks.scales.astype(np.uint8), blocks.minimums.astype(np.uint8))
    return [_fp16_bytes(blocks.d), _fp16_bytes(blocks.dmin), codes]


def _fp16_bytes(x: NDArray[np.float16]) -> Bytes:
    return x.astype("<f2")[:, None].view(np.uint8)


_PACKERS: Final[dict[GGMLType, Callable[[_Blocks], list[Bytes]]]] = {
    GGMLType.Q4_K: _pack_q4_k,
    GGMLType.Q5_K: _pack_q5_k,
    GGMLType.Q6_K: _pack_q6_k,
}
