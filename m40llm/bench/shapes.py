"""Shapes of real models, for synthetic weights, and how their tensors are quantised."""

from dataclasses import replace
from typing import Final

from gguf import GGMLQuantizationType as GGMLType

from m40llm.errors import RequestError
from m40llm.gguf.blocks import FORMATS
from m40llm.model.hparams import HParams
from m40llm.model.rope_params import RopeParams


def _shape(
    n_layers: int, n_embd: int, n_ff: int, n_heads: int, n_kv_heads: int, vocab_size: int
) -> HParams:
    head_dim = n_embd // n_heads
    return HParams(
        arch="llama",
        context_length=131072,
        vocab_size=vocab_size,
        n_layers=n_layers,
        n_embd=n_embd,
        n_ff=n_ff,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        norm_eps=1e-5,
        rope=RopeParams(rope_dim=head_dim, theta=500000.0),
    )


SHAPES: Final[dict[str, HParams]] = {
    "tiny": _shape(1, 128, 256, 2, 1, 300),  # no model's: one that the emulator runs in no time
    "135m": _shape(30, 576, 1536, 9, 3, 49152),  # SmolLM2
    "1b": _shape(16, 2048, 8192, 32, 8, 128256),  # Llama 3.2
    "8b": _shape(32, 4096, 14336, 32, 8, 128256),  # Llama 3.1
    "qwen3-8b": replace(
        _shape(36, 4096, 12288, 32, 8, 151936),
        arch="qwen3",
        context_length=40960,
        norm_eps=1e-6,
        rope=RopeParams(rope_dim=128, theta=1e6),
    ),
}
TYPES: Final = (
    *("F32", "F16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"),
    *("Q2_K", "Q3_K", "Q4_K", "Q4_K_M", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4"),
)


def shape_of(name: str) -> HParams:
    """RequestError for a name that is none."""
    if name not in SHAPES:
        raise RequestError(f"shape: expected one of {', '.join(SHAPES)}, got {name!r}")
    return SHAPES[name]


def tensor_type(kind: str, tensor: str, layer: int, n_layers: int, n_cols: int) -> GGMLType:
    """The type of a tensor in a file of this kind, as llama.cpp's quantize writes it.

    Q4_K_M has Q6_K in the output matrix, and in attn_v and ffn_down of the first and last eighth
    of the layers and every third between. Types with blocks of 256 weights need rows of a multiple
    of that; narrower ones become Q8_0 here.
    """
    if kind not in TYPES:
        raise RequestError(f"type: expected one of {', '.join(TYPES)}, got {kind!r}")
    if kind != "Q4_K_M":
        found = GGMLType[kind]
    else:
        eighth = n_layers // 8
        is_more = layer < eighth or layer >= 7 * n_layers // 8 or (layer - eighth) % 3 == 2
        is_fine = tensor == "output" or (tensor in ("attn_v", "ffn_down") and is_more)
        found = GGMLType.Q6_K if is_fine else GGMLType.Q4_K
    return GGMLType.Q8_0 if n_cols % FORMATS[found].n_weights else found
