"""What differs between architectures, as data: one row each. The layers have no `if arch ==`.

Tensor names are llama.cpp's (llama-arch.cpp).
"""

from collections.abc import Iterator
from dataclasses import dataclass

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


ARCHITECTURES: dict[str, Architecture] = {
    row.name: row
    for row in (
        # llama.cpp's converter permutes Q and K rows of llama files for interleaved pairs; files
        # of Mistral, SmolLM and many others say "llama" as well.
        Architecture("llama", rope_layout="interleaved"),
        Architecture("mistral", rope_layout="interleaved", has_sliding_window=True),
        Architecture("qwen2", rope_layout="half", has_qkv_bias=True),
    )
}


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
    yield TensorSpec("rope_freqs.weight", (hp.rope.rope_dim // 2,), is_optional=True)
    for layer in range(hp.n_layers):
        for spec in layer_specs(arch, hp):
            yield TensorSpec(f"blk.{layer}.{spec.name}", spec.shape, spec.is_optional)
    yield TensorSpec("output_norm.weight", (hp.n_embd,))
    yield TensorSpec("output.weight", (hp.vocab_size, hp.n_embd), is_optional=True)  # else tied


def layer_specs(arch: Architecture, hp: HParams) -> Iterator[TensorSpec]:
    """One layer's tensors, without the `blk.N.` before their names."""
    yield TensorSpec("attn_norm.weight", (hp.n_embd,))
    for name, width in (("attn_q", hp.q_dim), ("attn_k", hp.kv_dim), ("attn_v", hp.kv_dim)):
        yield TensorSpec(f"{name}.weight", (width, hp.n_embd))
        yield TensorSpec(f"{name}.bias", (width,), is_optional=not arch.has_qkv_bias)
    yield TensorSpec("attn_output.weight", (hp.n_embd, hp.q_dim))
    yield TensorSpec("attn_output.bias", (hp.n_embd,), is_optional=True)
    yield TensorSpec("ffn_norm.weight", (hp.n_embd,))
    for name, n_out, n_in in (
        ("ffn_gate", hp.n_ff, hp.n_embd),
        ("ffn_up", hp.n_ff, hp.n_embd),
        ("ffn_down", hp.n_embd, hp.n_ff),
    ):
        yield TensorSpec(f"{name}.weight", (n_out, n_in))
        yield TensorSpec(f"{name}.bias", (n_out,), is_optional=True)
