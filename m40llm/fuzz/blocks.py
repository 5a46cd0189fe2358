"""Weights in any GGML type: quantised where gguf.quants can, else random blocks that are valid.

For K-quants and most IQ types the gguf package can only dequantise. There the block's quants
and sub-block scales are random bytes, all of which are valid; only the FP16 scale of the block
is set, so that the weights come out with the spread that was asked for.
"""

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import quantize
from numpy.typing import NDArray

from m40llm.gguf.blocks import FORMATS, dequantize, row_bytes

_Type = GGMLQuantizationType

# Where a block keeps its FP16 scale (ggml-common.h).
_SCALE_OFFSET = {
    _Type.Q2_K: 80,
    _Type.Q3_K: 108,
    _Type.Q4_K: 0,
    _Type.Q5_K: 0,
    _Type.Q6_K: 208,
    _Type.IQ1_S: 0,
    _Type.IQ2_XXS: 0,
    _Type.IQ2_XS: 0,
    _Type.IQ2_S: 0,
    _Type.IQ3_XXS: 0,
    _Type.IQ3_S: 0,
    _Type.IQ4_NL: 0,
    _Type.IQ4_XS: 0,
}
# Types with minimums keep their FP16 scale 2 bytes further on; this many times the first one
# it moves the mean of the weights, scale * (mean quant) - minimum, to about 0.
_MIN_RATIO = {_Type.Q2_K: 1.5, _Type.Q4_K: 7.5, _Type.Q5_K: 15.5}
_QUANTIZABLE = (
    *(_Type.F32, _Type.F16, _Type.BF16),
    *(_Type.Q4_0, _Type.Q4_1, _Type.Q5_0, _Type.Q5_1, _Type.Q8_0),
    *(_Type.TQ1_0, _Type.TQ2_0, _Type.MXFP4),
)
WRITABLE = (*_QUANTIZABLE, *_SCALE_OFFSET, _Type.IQ1_M, _Type.NVFP4)


def random_tensor(
    rng: np.random.Generator, shape: tuple[int, ...], std: float, type: GGMLQuantizationType
) -> NDArray[np.uint8]:
    """Random weights of about the given spread, as uint8[..., row_bytes] of the type."""
    if type in _QUANTIZABLE:
        weights = rng.normal(0.0, std, shape).astype(np.float32)
        encoded: NDArray[np.uint8] = quantize(weights, type).view(np.uint8)
        return encoded
    n_bytes = row_bytes(type, shape[-1])
    blocks = rng.integers(0, 256, (*shape[:-1], n_bytes), np.uint8)
    blocks = blocks.reshape(-1, FORMATS[type].n_bytes)
    spread = rng.uniform(0.7, 1.3, len(blocks))  # so that a wrong block's scale is noticed
    if type == _Type.NVFP4:
        _set_nvfp4_scales(blocks, std)
    else:
        _set_scale(blocks, type, np.ones(len(blocks)))
        unit = float(dequantize(type, blocks).std())
        _set_scale(blocks, type, spread * std / unit)
    return blocks.reshape(*shape[:-1], n_bytes)


def _set_scale(
    blocks: NDArray[np.uint8], type: GGMLQuantizationType, scale: NDArray[np.float64]
) -> None:
    if type == _Type.IQ1_M:
        _set_iq1_m_scale(blocks, scale)
        return
    offset = _SCALE_OFFSET[type]
    blocks[:, offset : offset + 2] = _fp16_bytes(scale)
    if type in _MIN_RATIO:
        blocks[:, offset + 2 : offset + 4] = _fp16_bytes(scale * _MIN_RATIO[type])


def _fp16_bytes(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    return values.astype("<f2")[:, None].view(np.uint8)


def _set_iq1_m_scale(blocks: NDArray[np.uint8], scale: NDArray[np.float64]) -> None:
    """IQ1_M spreads its FP16 scale over the top nibbles of four 16-bit words at byte 48."""
    bits = scale.astype("<f2").view("<u2")
    for word in range(4):
        nibble = (bits >> (4 * word)) & 0xF
        high = blocks[:, 49 + 2 * word]
        blocks[:, 49 + 2 * word] = (high & 0x0F) | (nibble << 4).astype(np.uint8)


def _set_nvfp4_scales(blocks: NDArray[np.uint8], std: float) -> None:
    """NVFP4 has four 8-bit scales, bytes 0 to 3: the value of 126 that comes nearest."""
    candidates = np.repeat(blocks[:1], 126, axis=0)
    candidates[:, :4] = np.arange(1, 127, dtype=np.uint8)[:, None]
    spreads = dequantize(_Type.NVFP4, candidates).std(axis=-1)
    blocks[:, :4] = 1 + int(np.abs(np.log(spreads / std)).argmin())
