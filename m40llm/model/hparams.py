"""Hyper-parameters of a model: the numbers of its metadata, checked, under this project's names.

Key names and defaults are llama.cpp's (llama-arch.cpp, llama-model.cpp). What depends on the
architecture (which way RoPE pairs dimensions, which tensors there are) is not here but in the
table of model/arch.py; these fields mean the same for every architecture.
"""

from dataclasses import dataclass

import numpy as np

from m40llm.errors import UnsupportedModelError
from m40llm.gguf import REQUIRED, GGUFFile, Metadata
from m40llm.model.rope_params import (
    MAX_CONTEXT,
    MAX_FACTOR,
    Default,
    RopeParams,
    divisor,
    read_rope,
)

# Limits far above any model that exists, so low that the products of them which size buffers
# stay below 2^63: n_layers * n_kv_heads * head_dim * context_length is at most 2^61.
MAX_LAYERS = 2**12  # the deepest models have a few hundred
MAX_HEADS = 2**12  # 128 in Llama 3 405B
MAX_HEAD_DIM = 2**11  # 512 at most so far
MAX_EMBD = 2**18  # 16,384 in Llama 3 405B
MAX_FF = 2**20  # 53,248 in Llama 3 405B
MAX_EXPERTS = 2**12  # 512 in Qwen 3 Next
MAX_VOCAB = 2**24  # 262,144 in Gemma 3


@dataclass(frozen=True)
class HParams:
    """What shapes a model. All counts are at least 1; see the limits above for their ends."""

    arch: str
    context_length: int  # tokens
    vocab_size: int
    n_layers: int
    n_embd: int
    n_ff: int
    n_heads: int
    n_kv_heads: int  # divides n_heads
    head_dim: int  # of K and V; need not be n_embd / n_heads
    norm_eps: float
    rope: RopeParams
    sliding_window: int | None = None  # tokens that a token sees, itself included
    attention_scale: float | None = None  # of Q K^T; None: 1 / sqrt(head_dim)
    embedding_scale: float = 1.0  # multiplies embeddings
    residual_scale: float = 1.0  # multiplies what a block adds to the residual stream
    logit_scale: float = 1.0  # divides logits
    attn_softcap: float | None = None  # of scores; 0: none; None: the architecture's
    logit_softcap: float | None = None  # of logits, likewise
    n_experts: int = 0  # feed-forward networks of a layer, each of n_ff; 0: one, for all tokens
    n_experts_used: int = 0  # by each token
    expert_weights_norm: bool = True  # a token's shares of its experts are of sum 1

    @property
    def group_size(self) -> int:
        """Query heads that share a K/V head."""
        return self.n_heads // self.n_kv_heads

    @property
    def q_dim(self) -> int:
        """Width of all query heads, which is attn_output's input."""
        return self.n_heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        """Width of all key (or value) heads."""
        return self.n_kv_heads * self.head_dim

    @property
    def value_length(self) -> int:
        """Width of a value head: `head_dim`, since `from_gguf` refuses anything else."""
        return self.head_dim

    @classmethod
    def from_gguf(cls, file: GGUFFile) -> "HParams":
        """Reads and checks the hyper-parameters of an open file, whatever its architecture.

        Raises ModelFileError for a number that is missing, of the wrong type, NaN or absurd, or
        that contradicts another; UnsupportedModelError for what is sound but not run here.
        """
        metadata = file.metadata
        arch = metadata.get_str("general.architecture")
        context_length = _count(metadata, f"{arch}.context_length", MAX_CONTEXT)
        n_layers = _count(metadata, f"{arch}.block_count", MAX_LAYERS)
        n_embd = _count(metadata, f"{arch}.embedding_length", MAX_EMBD)
        n_heads, n_kv_heads = _heads(metadata, arch, n_layers)
        head_dim = _head_dim(metadata, arch, n_embd, n_heads)
        window = metadata.get_int(
            f"{arch}.attention.sliding_window", 0, minimum=0, maximum=2**32 - 1
        )
        n_experts, n_experts_used, n_ff = _experts(metadata, arch, n_layers)
        return cls(
            arch=arch,
            context_length=context_length,
            vocab_size=_vocab_size(metadata, arch),
            n_layers=n_layers,
            n_embd=n_embd,
            n_ff=n_ff,
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=head_dim,
            norm_eps=_norm_eps(metadata, arch),
            rope=read_rope(metadata, arch, head_dim, context_length),
            sliding_window=window or None,
            attention_scale=_multiplier(metadata, f"{arch}.attention.scale", None),
            embedding_scale=_multiplier(metadata, f"{arch}.embedding_scale", 1.0),
            residual_scale=_multiplier(metadata, f"{arch}.residual_scale", 1.0),
            logit_scale=_multiplier(metadata, f"{arch}.logit_scale", 1.0),
            attn_softcap=divisor(metadata, f"{arch}.attn_logit_softcapping", None),
            logit_softcap=divisor(metadata, f"{arch}.final_logit_softcapping", None),
            n_experts=n_experts,
            n_experts_used=n_experts_used,
            expert_weights_norm=metadata.get_bool(f"{arch}.expert_weights_norm", True),
        )


def _count(metadata: Metadata, key: str, limit: int) -> int:
    return metadata.get_int(key, minimum=1, maximum=limit)


def _per_layer(
    metadata: Metadata, key: str, n_layers: int, limit: int, default: int | None = None
) -> int:
    """A count that a file may give once, or once a layer; the layers must agree."""
    if metadata.n_items(key) is None:
        return metadata.get_int(
            key, REQUIRED if default is None else default, minimum=1, maximum=limit
        )
    counts = metadata.get_ints(key)
    if counts.size != n_layers:
        metadata.refuse(key, f"a number or {n_layers} of them, one a layer", f"{counts.size}")
    span = f"{counts.min()} to {counts.max()}"
    if counts.min() < 1 or counts.max() > limit:
        metadata.refuse(key, f"integers from 1 to {limit}", span)
    if np.any(counts != counts[0]):
        metadata.refuse(key, "the same number in every layer", span, UnsupportedModelError)
    return int(counts[0])


def _experts(metadata: Metadata, arch: str, n_layers: int) -> tuple[int, int, int]:
    """(n_experts, n_experts_used, n_ff), of an expert where there are some."""
    n_experts = metadata.get_int(f"{arch}.expert_count", 0, minimum=0, maximum=MAX_EXPERTS)
    ff_key, own_key = f"{arch}.feed_forward_length", f"{arch}.expert_feed_forward_length"
    if not n_experts:
        return 0, 0, _per_layer(metadata, ff_key, n_layers, MAX_FF)
    n_used = metadata.get_int(f"{arch}.expert_used_count", minimum=1, maximum=n_experts)
    key = own_key if own_key in metadata else ff_key
    return n_experts, n_used, _per_layer(metadata, key, n_layers, MAX_FF)


def _vocab_size(metadata: Metadata, arch: str) -> int:
    """The vocabulary's length; without a vocabulary, what the architecture's key says."""
    key = "tokenizer.ggml.tokens"
    if key not in metadata:
        return _count(metadata, f"{arch}.vocab_size", MAX_VOCAB)
    n_tokens = metadata.n_strings(key)
    if not 1 <= n_tokens <= MAX_VOCAB:
        metadata.refuse(key, f"an array of 1 to {MAX_VOCAB} strings", f"{n_tokens}")
    return n_tokens


def _heads(metadata: Metadata, arch: str, n_layers: int) -> tuple[int, int]:
    key = f"{arch}.attention.head_count"
    n_heads = _per_layer(metadata, key, n_layers, MAX_HEADS)
    n_kv_heads = _per_layer(metadata, f"{key}_kv", n_layers, MAX_HEADS, default=n_heads)
    if n_heads % n_kv_heads:
        metadata.refuse(f"{key}_kv", f"a divisor of the {n_heads} heads", f"{n_kv_heads}")
    return n_heads, n_kv_heads


def _head_dim(metadata: Metadata, arch: str, n_embd: int, n_heads: int) -> int:
    key = f"{arch}.attention.key_length"
    if key not in metadata and n_embd % n_heads:
        wanted = f"a multiple of the {n_heads} heads, {key} being absent"
        metadata.refuse(f"{arch}.embedding_length", wanted, f"{n_embd}")
    default = n_embd // n_heads
    head_dim = metadata.get_int(key, default, minimum=1, maximum=MAX_HEAD_DIM)
    if head_dim > MAX_HEAD_DIM:
        wanted = f"at most {MAX_HEAD_DIM} for each of the {n_heads} heads"
        metadata.refuse(f"{arch}.embedding_length", wanted, f"{n_embd}, which is {head_dim} a head")
    value_key = f"{arch}.attention.value_length"
    value_length = metadata.get_int(value_key, default, minimum=1, maximum=MAX_HEAD_DIM)
    if value_length != head_dim:
        wanted = f"value heads as wide as key heads, {head_dim}"
        metadata.refuse(value_key, wanted, f"{value_length}", UnsupportedModelError)
    return head_dim


def _norm_eps(metadata: Metadata, arch: str) -> float:
    key = f"{arch}.attention.layer_norm_rms_epsilon"
    plain = f"{arch}.attention.layer_norm_epsilon"  # LayerNorm architectures
    if key not in metadata and plain in metadata:
        key = plain
    eps = metadata.get_float(key)
    if not 0.0 < eps < 1.0:
        metadata.refuse(key, "a number between 0 and 1", f"{eps:g}")
    return eps


def _multiplier(metadata: Metadata, key: str, default: Default) -> float | Default:
    """A factor; 0 and absent mean that there is none (llama.cpp)."""
    return metadata.get_float(key, 0.0, minimum=0.0, maximum=MAX_FACTOR) or default
