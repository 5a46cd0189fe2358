"""What differs between architectures, as data: one row each. The layers have no `if arch ==`.

Tensor names are llama.cpp's (llama-arch.cpp).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

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
    qk_norm: Literal["none", "head", "row"] = "none"  # attn_{q,k}_norm, before Q and K are turned
    norms: Literal["before", "after", "both"] = "before"  # attention and feed-forward
    activation: Literal["silu", "gelu"] = "silu"  # of the gate
    embedding_scale: Literal["none", "sqrt"] = "none"  # sqrt(n_embd); else the file may say
    no_rope_step: int = 0  # each so many-th layer turns nothing; 0: all do
    global_step: int = 0  # each so many-th layer sees all, the others sliding_window; 0: all do
    local_theta: float | None = None  # of those others, which stretch no context; None: as all
    is_fused: bool = False  # Q, K and V are one tensor, and so are gate and up
    experts: Literal["never", "may", "must"] = "never"  # in place of one feed-forward network
    default_window: int = 0  # sliding_window where the file has none
    attn_softcap: float = 0.0  # of scores, where the file does not say; 0: none
    logit_softcap: float = 0.0  # of logits, likewise
    n_layers_of_wide: int = 0  # of the size whose scores are divided by sqrt(n_embd / n_heads)

    def score_scale(self, hp: HParams) -> float:
        """What Q K^T is multiplied by."""
        is_wide = hp.n_layers == self.n_layers_of_wide
        return hp.attention_scale or (hp.n_embd / hp.n_heads if is_wide else hp.head_dim) ** -0.5

    def softcaps(self, hp: HParams) -> tuple[float, float]:
        """What (scores, logits) stay within, each as cap tanh(x / cap); 0: no cap."""
        attn = self.attn_softcap if hp.attn_softcap is None else hp.attn_softcap
        return attn, self.logit_softcap if hp.logit_softcap is None else hp.logit_softcap

    def window_of(self, layer: int, hp: HParams) -> int:
        """How many positions this layer sees at most; 0: all."""
        return (hp.sliding_window or self.default_window) if self.is_local(layer) else 0

    def embedding_factor(self, hp: HParams) -> float:
        """What embeddings are multiplied by."""
        return math.sqrt(hp.n_embd) if self.embedding_scale == "sqrt" else hp.embedding_scale

    def has_rope(self, layer: int) -> bool:
        """Whether this layer, from 0 on, turns Q and K."""
        return self.no_rope_step == 0 or (layer + 1) % self.no_rope_step != 0

    def rope_of(self, layer: int) -> Literal["all", "none", "local"]:
        """Which table of cosines and sines this layer turns by."""
        if not self.has_rope(layer):
            return "none"
        return "local" if self.local_theta and self.is_local(layer) else "all"

    def ropes(self, layers: range) -> list[Literal["all", "none", "local"]]:
        """Each layer's: there is a table of each that occurs."""
        return [self.rope_of(layer) for layer in layers]

    def is_local(self, layer: int) -> bool:
        """Whether this layer sees the sliding window alone, where there is one."""
        if self.global_step == 0:
            return self.has_sliding_window
        return (layer + 1) % self.global_step != 0


ARCHITECTURES: dict[str, Architecture] = {
    row.name: row
    for row in (
        # llama.cpp's converter permutes Q and K rows of llama files for interleaved pairs; files
        # of Mistral, SmolLM and many others say "llama" as well.
        Architecture("llama", rope_layout="interleaved", experts="may"),  # Mixtral has them
        Architecture("mistral", rope_layout="interleaved", has_sliding_window=True),
        Architecture("qwen2", rope_layout="half", has_qkv_bias=True),
        Architecture("qwen3", rope_layout="half", qk_norm="head"),
        Architecture("qwen3moe", rope_layout="half", qk_norm="head", experts="must"),
        Architecture("olmo2", rope_layout="half", qk_norm="row", norms="after"),
        Architecture("granite", rope_layout="interleaved"),
        # The step is not in the file, and the first files said no window and no caps either.
        Architecture(
            "gemma2",
            rope_layout="half",
            has_sliding_window=True,
            norms="both",
            activation="gelu",
            embedding_scale="sqrt",
            global_step=2,
            default_window=4096,
            attn_softcap=50.0,
            logit_softcap=30.0,
            n_layers_of_wide=46,  # 27B
        ),
        # Step and theta are not in the file (llama-model.cpp); norms there have the +1 already.
        Architecture(
            "gemma3",
            rope_layout="half",
            has_sliding_window=True,
            qk_norm="head",
            norms="both",
            activation="gelu",
            embedding_scale="sqrt",
            global_step=6,
            local_theta=10000.0,
            n_layers_of_wide=62,  # 27B
        ),
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
    row = ARCHITECTURES[name]
    n_experts = file.metadata.get_int(f"{name}.expert_count", 0, minimum=0)
    if n_experts and row.experts == "never":
        raise UnsupportedModelError(
            f"{name}.expert_count: {n_experts} experts; this version runs {name} without them only"
        )
    if not n_experts and row.experts == "must":
        raise UnsupportedModelError(f"{name}.expert_count: expected experts, got none")
    return row


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
    if arch.norms != "after":
        yield TensorSpec("attn_norm.weight", (hp.n_embd,))
        yield TensorSpec("ffn_norm.weight", (hp.n_embd,))
    if arch.norms != "before":
        yield TensorSpec("post_attention_norm.weight", (hp.n_embd,))
        yield TensorSpec("post_ffw_norm.weight", (hp.n_embd,))
    qkv = [("attn_q", hp.q_dim), ("attn_k", hp.kv_dim), ("attn_v", hp.kv_dim)]
    gate_up = [("ffn_gate", hp.n_ff), ("ffn_up", hp.n_ff)]
    if arch.is_fused:
        qkv, gate_up = [("attn_qkv", hp.q_dim + 2 * hp.kv_dim)], [("ffn_up", 2 * hp.n_ff)]
    for name, width in qkv:
        yield TensorSpec(f"{name}.weight", (width, hp.n_embd))
        if not arch.is_fused:
            yield TensorSpec(f"{name}.bias", (width,), is_optional=not arch.has_qkv_bias)
    if arch.qk_norm != "none":
        is_row = arch.qk_norm == "row"
        yield TensorSpec("attn_q_norm.weight", (hp.q_dim if is_row else hp.head_dim,))
        yield TensorSpec("attn_k_norm.weight", (hp.kv_dim if is_row else hp.head_dim,))
    yield TensorSpec("attn_output.weight", (hp.n_embd, hp.q_dim))
    yield TensorSpec("attn_output.bias", (hp.n_embd,), is_optional=True)
    if hp.n_experts:
        yield from expert_specs(hp)
        return
    for name, n_out in gate_up:
        yield TensorSpec(f"{name}.weight", (n_out, hp.n_embd))
        if not arch.is_fused:
            yield TensorSpec(f"{name}.bias", (n_out,), is_optional=True)
    yield TensorSpec("ffn_down.weight", (hp.n_embd, hp.n_ff))
    yield TensorSpec("ffn_down.bias", (hp.n_embd,), is_optional=True)


def expert_specs(hp: HParams) -> Iterator[TensorSpec]:
    """What stands in place of a layer's feed-forward network where it has experts."""
    yield TensorSpec("ffn_gate_inp.weight", (hp.n_experts, hp.n_embd))
    for name in ("ffn_gate_exps", "ffn_up_exps"):
        yield TensorSpec(f"{name}.weight", (hp.n_experts, hp.n_ff, hp.n_embd))
    yield TensorSpec("ffn_down_exps.weight", (hp.n_experts, hp.n_embd, hp.n_ff))


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
