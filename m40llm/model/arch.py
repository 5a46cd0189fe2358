"""What differs between architectures, as data: one row each. The layers have no `if arch ==`.

Tensor names are llama.cpp's (llama-arch.cpp).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from m40llm.device.ops import RopeLayout
from m40llm.errors import UnsupportedModelError
from m40llm.gguf import GGUFFile
from m40llm.model.hparams import HParams


@dataclass(frozen=True)
class Architecture:
    """One row: how a model of this name departs from the plain decoder."""

    name: str  # general.architecture
    rope_layout: RopeLayout  # which elements of a head RoPE pairs
    has_qkv_bias: bool = False  # attn_{q,k,v}.bias must be there; elsewhere they may be
    has_sliding_window: bool = False  # honours attention.sliding_window
    has_head_norms: bool = False  # attn_{q,k}_norm: each head of Q and K, before it is turned
    no_rope_step: int = 0  # each so many-th layer turns nothing; 0: all do
    is_fused: bool = False  # Q, K and V are one tensor, and so are gate and up

    def has_rope(self, layer: int) -> bool:
        """Whether this layer, from 0 on, turns Q and K."""
        return self.no_rope_step == 0 or (layer + 1) % self.no_rope_step != 0


ARCHITECTURES: dict[str, Architecture] = {
    row.name: row
    for row in (
        # llama.cpp's converter permutes Q and K rows of llama files for interleaved pairs; files
        # of Mistral, SmolLM and many others say "llama" as well.
        Architecture("llama", rope_layout="interleaved"),
        Architecture("mistral", rope_layout="interleaved", has_sliding_window=True),
        Architecture("qwen2", rope_layout="half", has_qkv_bias=True),
        Architecture("qwen3", rope_layout="half", has_head_norms=True),
        # The step is not in the file (llama-model.cpp: n_no_rope_layer_step).
        Architecture("smollm3", rope_layout="interleaved", no_rope_step=4),
        Architecture("phi3", rope_layout="half", has_sliding_window=True, is_fused=True),
    )
}


# What divides the frequencies of RoPE: always; or, of longrope, in short and in long contexts.
ROPE_FACTORS: Final = (
    "rope_freqs.weight",
    "rope_factors_short.weight",
    "rope_factors_long.weight",
)


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that a model of this shape has: NumPy order, (n_rows, n_cols) or (n,)."""

    name: str
    shape: tuple[int, ...]
    is_optional: bool = False


def architecture_of(file: GGUFFile) -> Architecture:
    """The file's row. UnsupportedModelError names an unknown architecture, and those known."""
    name = file.metadata.get_str("general.architecture")
    if name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UnsupportedModelError(
            f"general.architecture: expected one of {known}, got {name!r}: "
            "this version does not run it"
        )
    n_experts = file.metadata.get_int(f"{name}.expert_count", 0, minimum=0)
    if n_experts:
        raise UnsupportedModelError(
            f"{name}.expert_count: {n_experts} experts; this version runs dense models only"
        )
    return ARCHITECTURES[name]


def tensor_specs(arch: Architecture, hp: HParams) -> Iterator[TensorSpec]:
    """Every tensor that the model may have, the whole file in order of use."""
    yield TensorSpec("token_embd.weight", (hp.vocab_size, hp.n_embd))
    is_long = hp.rope.scaling == "longrope"
    for name in ROPE_FACTORS:
        is_optional = name == "rope_freqs.weight" or not is_long
        yield TensorSpec(name, (hp.rope.rope_dim // 2,), is_optional)
    for layer in range(hp.n_layers):
        for spec in layer_specs(arch, hp):
            yield TensorSpec(f"blk.{layer}.{spec.name}", spec.shape, spec.is_optional)
    yield TensorSpec("output_norm.weight", (hp.n_embd,))
    yield TensorSpec("output.weight", (hp.vocab_size, hp.n_embd), is_optional=True)  # else tied


def layer_specs(arch: Architecture, hp: HParams) -> Iterator[TensorSpec]:
    """One layer's tensors, without the `blk.N.` before their names."""
    yield TensorSpec("attn_norm.weight", (hp.n_embd,))
    qkv = [("attn_q", hp.q_dim), ("attn_k", hp.kv_dim), ("attn_v", hp.kv_dim)]
    gate_up = [("ffn_gate", hp.n_ff), ("ffn_up", hp.n_ff)]
    if arch.is_fused:
        qkv, gate_up = [("attn_qkv", hp.q_dim + 2 * hp.kv_dim)], [("ffn_up", 2 * hp.n_ff)]
    for name, width in qkv:
        yield TensorSpec(f"{name}.weight", (width, hp.n_embd))
        if not arch.is_fused:
            yield TensorSpec(f"{name}.bias", (width,), is_optional=not arch.has_qkv_bias)
    if arch.has_head_norms:
        yield TensorSpec("attn_q_norm.weight", (hp.head_dim,))
        yield TensorSpec("attn_k_norm.weight", (hp.head_dim,))
    yield TensorSpec("attn_output.weight", (hp.n_embd, hp.q_dim))
    yield TensorSpec("attn_output.bias", (hp.n_embd,), is_optional=True)
    yield TensorSpec("ffn_norm.weight", (hp.n_embd,))
    for name, n_out in gate_up:
        yield TensorSpec(f"{name}.weight", (n_out, hp.n_embd))
        if not arch.is_fused:
            yield TensorSpec(f"{name}.bias", (n_out,), is_optional=True)
    yield TensorSpec("ffn_down.weight", (hp.n_embd, hp.n_ff))
    yield TensorSpec("ffn_down.bias", (hp.n_embd,), is_optional=True)


class RowRange(NamedTuple):
    """Rows of a tensor of a layer, `blk.N.` left out."""

    tensor: str
    first: int
    n_rows: int


def rows_of(arch: Architecture, hp: HParams) -> dict[str, RowRange]:
    """Where the matrices are that the layers multiply by, of those that a file may fuse."""
    parts = {
        "attn_qkv": (("attn_q", hp.q_dim), ("attn_k", hp.kv_dim), ("attn_v", hp.kv_dim)),
        "ffn_up": (("ffn_gate", hp.n_ff), ("ffn_up", hp.n_ff)),
    }
    found = {}
    for fused, group in parts.items():
        first = 0
        for name, n_rows in group:
            tensor, at = (fused, first) if arch.is_fused else (name, 0)
            found[name] = RowRange(f"{tensor}.weight", at, n_rows)
            first += n_rows
    return found
