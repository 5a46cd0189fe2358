"""The table of cosines and sines for RoPE, with every way of stretching the context.

Computed once in FP64 on the host and stored in FP32, for all devices: the accurate device sine
takes FP64 on sm_52, the fast one is wrong at large angles.
"""

import math

import numpy as np
from numpy.typing import NDArray

from m40llm.device.ops import Ops, RopeLayout, RopeTable
from m40llm.errors import ModelFileError, UnsupportedModelError
from m40llm.model.arch import Architecture
from m40llm.model.rope_params import RopeParams

Doubles = NDArray[np.float64]


def rope_angles(
    rope: RopeParams, n_pos: int, freq_factors: NDArray[np.float32] | None = None
) -> tuple[Doubles, float]:
    """(angles float64[n_pos, rope_dim / 2], magnitude that multiplies cosines and sines).

    freq_factors  float32[rope_dim / 2]  the tensor rope_freqs.weight: divides each frequency
    """
    pair = np.arange(rope.rope_dim // 2)
    freq = rope.theta ** (-2.0 * pair / rope.rope_dim)
    if freq_factors is not None:
        if not (np.isfinite(freq_factors).all() and (freq_factors > 0).all()):
            raise ModelFileError("tensor rope_freqs.weight: expected finite factors above 0")
        freq = freq / freq_factors.astype(np.float64)
    freq, magnitude = _scaled(rope, freq)
    return np.outer(np.arange(n_pos), freq), magnitude


def _scaled(rope: RopeParams, freq: Doubles) -> tuple[Doubles, float]:
    if rope.scaling == "none":
        return freq, rope.attn_factor
    if rope.scaling == "linear":
        return freq / rope.factor, rope.attn_factor
    if rope.scaling == "yarn":
        return _yarn(rope, freq)
    if rope.scaling == "llama3":
        return _llama3(rope, freq), 1.0
    if rope.scaling == "longrope":  # its factors are tensors, see weights.rope_factors
        return freq, _longrope_magnitude(rope)
    raise UnsupportedModelError(f"rope.scaling.type {rope.scaling!r}: not run by this version")


def _yarn(rope: RopeParams, freq: Doubles) -> tuple[Doubles, float]:
    """YaRN (arXiv 2309.00071, equations 17 to 24; ggml's rope_yarn): slow pairs are interpolated,
    fast ones left alone, with a ramp between; the magnitude grows by 0.1 ln(factor) + 1."""
    n_pairs = freq.size

    def pair_of(n_turns: float) -> float:
        """The pair that turns n_turns times within the original context."""
        length = rope.original_context_length / (n_turns * 2 * math.pi)
        return rope.rope_dim * math.log(length) / (2 * math.log(rope.theta))

    low = max(0.0, math.floor(pair_of(rope.beta_fast)))
    high = min(rope.rope_dim - 1.0, math.ceil(pair_of(rope.beta_slow)))
    ramp = (np.arange(n_pairs) - low) / max(0.001, high - low)
    extrapolated = (1.0 - np.clip(ramp, 0.0, 1.0)) * rope.ext_factor
    mixed = freq / rope.factor * (1 - extrapolated) + freq * extrapolated
    magnitude = rope.attn_factor
    if rope.ext_factor:
        magnitude *= 1.0 + 0.1 * math.log(rope.factor)
    return mixed, magnitude


def _longrope_magnitude(rope: RopeParams) -> float:
    """LongRoPE (arXiv 2402.13753): the file's attn_factor, or what it is derived from."""
    if rope.attn_factor != 1.0 or rope.factor <= 1.0:
        return rope.attn_factor
    return math.sqrt(1.0 + math.log(rope.factor) / math.log(rope.original_context_length))


def _llama3(rope: RopeParams, freq: Doubles) -> Doubles:
    """Llama 3.1's rule (transformers, modeling_rope_utils): by wavelength against the context."""
    wavelength = 2 * math.pi / freq
    turns = rope.original_context_length / wavelength
    span = rope.high_freq_factor - rope.low_freq_factor
    smooth = np.clip((turns - rope.low_freq_factor) / max(span, 1e-9), 0.0, 1.0)
    return (1 - smooth) * freq / rope.factor + smooth * freq


def rope_bytes(rope: RopeParams, max_seq_len: int) -> int:
    """Bytes of the table below."""
    return 4 * rope.rope_dim * max_seq_len


def still_table(ops: Ops, rope: RopeParams, layout: RopeLayout, max_seq_len: int) -> RopeTable:
    """The table of a layer that turns nothing: cosines 1, sines 0."""
    cos, sin = (ops.empty((max_seq_len, rope.rope_dim // 2)) for _ in range(2))
    ops.write(cos, np.ones(cos.shape, np.float32))
    ops.write(sin, np.zeros(sin.shape, np.float32))
    return RopeTable(cos, sin, layout)


def rope_table(
    ops: Ops,
    rope: RopeParams,
    layout: RopeLayout,
    max_seq_len: int,
    freq_factors: NDArray[np.float32] | None = None,
) -> RopeTable:
    """The table on the device, for positions 0..max_seq_len - 1."""
    angles, magnitude = rope_angles(rope, max_seq_len, freq_factors)
    cos, sin = ops.empty(angles.shape), ops.empty(angles.shape)
    ops.write(cos, (np.cos(angles) * magnitude).astype(np.float32))
    ops.write(sin, (np.sin(angles) * magnitude).astype(np.float32))
    return RopeTable(cos, sin, layout)


def rope_tables(
    ops: Ops,
    arch: Architecture,
    rope: RopeParams,
    layers: range,
    max_seq_len: int,
    freq_factors: NDArray[np.float32] | None,
) -> list[RopeTable]:
    """Each layer's; most have the same one."""
    layout = arch.rope_layout
    local = RopeParams(rope.rope_dim, arch.local_theta or rope.theta)
    make = {
        "all": lambda: rope_table(ops, rope, layout, max_seq_len, freq_factors),
        "none": lambda: still_table(ops, rope, layout, max_seq_len),
        "local": lambda: rope_table(ops, local, layout, max_seq_len),
    }
    of_layers = arch.ropes(layers)
    made = {kind: make[kind]() for kind in set(of_layers)}
    return [made[kind] for kind in of_layers]
