"""Tiny random models in GGUF files, so that a test can have any architecture and any type.

Tensor names, shapes and keys are those of llama.cpp's converter; the files are written by the
gguf package's own writer, which our reader is thereby tested against. Weights are scaled as in a
fresh network (std 1/sqrt(fan_in)); the output matrix is wider, which spreads the logits (std
about 4) so that the best token is the best by far.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter
from numpy.typing import NDArray

from m40llm.gguf.blocks import FORMATS
from m40llm.testing.random_blocks import WRITABLE, random_tensor
from m40llm.testing.vocab import bpe_metadata, spm_metadata

T = TypeVar("T")

_LOGIT_STD = 4.0
_NORM_EPS = 1e-5
_VOCABULARIES = {"spm": spm_metadata, "bpe": bpe_metadata}
_SCALING_KEYS = (
    *("type", "factor", "original_context_length", "attn_factor", "finetuned"),
    *("yarn_ext_factor", "yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow"),
    *("yarn_log_multiplier", "low_freq_factor", "high_freq_factor"),
)


@dataclass(frozen=True)
class TinyArch:
    """What differs between the architectures that can be written; a new one is a row below."""

    gguf_name: str  # of general.architecture
    tokenizer: str
    biases: bool  # of q, k and v
    qk_norm: str = "none"  # head or row
    norms: str = "before"  # after or both
    fused: bool = False  # q, k and v in one tensor, gate and up in another
    experts: bool = False  # in place of one feed-forward network


_NORMS = {  # around attention, around feed-forward
    "before": (("attn_norm",), ("ffn_norm",)),
    "after": (("post_attention_norm",), ("post_ffw_norm",)),
    "both": (("attn_norm", "post_attention_norm"), ("ffn_norm", "post_ffw_norm")),
}
ARCHS = {
    "llama": TinyArch("llama", "spm", biases=False),
    "mistral": TinyArch("llama", "spm", biases=False),  # a llama to GGUF
    "qwen2": TinyArch("qwen2", "bpe", biases=True),
    "qwen3": TinyArch("qwen3", "bpe", biases=False, qk_norm="head"),
    "olmo2": TinyArch("olmo2", "bpe", biases=False, qk_norm="row", norms="after"),
    "granite": TinyArch("granite", "bpe", biases=False),
    "gemma2": TinyArch("gemma2", "spm", biases=False, norms="both"),
    "gemma3": TinyArch("gemma3", "spm", biases=False, qk_norm="head", norms="both"),
    "smollm3": TinyArch("smollm3", "bpe", biases=False),
    "phi3": TinyArch("phi3", "spm", biases=False, fused=True),
    "mixtral": TinyArch("llama", "spm", biases=False, experts=True),  # a llama to GGUF
    "qwen3moe": TinyArch("qwen3moe", "bpe", biases=False, qk_norm="head", experts=True),
}


@dataclass(frozen=True)
class TinyShape:
    """The shape keywords of `write_tiny_gguf`; None means that the rest decides."""

    n_layers: int = 2
    n_embd: int | None = None  # 64, or one block of the tensor type
    n_heads: int = 4
    n_kv_heads: int = 2
    head_dim: int | None = None  # n_embd / n_heads, and then no key_length is written
    n_ff: int | None = None  # 128, or one block of the tensor type
    n_experts: int = 8  # where the architecture has experts
    n_experts_used: int = 2  # by each token
    vocab_size: int | None = None  # the tokenizer's; more are unused tokens
    context_length: int = 128
    rope_theta: float = 10000.0
    rope_dim: int | None = None  # head_dim
    rope_scaling: dict[str, Any] | None = None  # {"type": "yarn", "factor": 4.0, ...}
    rope_freqs: bool = False  # a tensor rope_freqs.weight
    rope_factors: bool = False  # rope_factors_short.weight and _long: longrope's
    tied: bool = False  # no output.weight
    biases: bool | None = None  # as the architecture has them
    tokenizer: str | None = None  # spm or bpe; as the architecture has it
    chat_template: str | None = None
    metadata: dict[str, Any] | None = None  # more keys, or other values; None leaves one out


@dataclass(frozen=True)
class _Plan:
    """All that a file is made of, with nothing left open."""

    arch: TinyArch
    type: GGMLQuantizationType
    shape: TinyShape
    n_embd: int
    n_ff: int
    head_dim: int
    rope_dim: int
    n_vocab: int
    biases: bool


def write_tiny_gguf(
    path: str | Path,
    *,
    arch: str = "llama",
    tensor_type: str = "F32",
    seed: int = 0,
    **shape: Any,
) -> Path:
    """Writes a random model of a few hundred thousand weights, the same for the same arguments.

    `arch` is a key of ARCHS; `tensor_type` the GGML type of all matrices (vectors are
    F32). `shape` takes the fields of `TinyShape`: n_layers, n_embd, n_heads, n_kv_heads,
    head_dim, n_ff, n_experts, n_experts_used, vocab_size, context_length, rope_theta, rope_dim,
    rope_scaling, rope_freqs, rope_factors, tied, biases, tokenizer, chat_template, metadata.

    Raises TypeError for an unknown keyword, ValueError for values that make no model.
    """
    plan, keys = _plan(arch, tensor_type, shape)
    writer = GGUFWriter(Path(path), keys.pop("general.architecture"))
    for key, value in keys.items():
        writer.add_key_value(key, value, GGUFValueType.get_type(value))
    rng = np.random.default_rng(seed)
    for name, data, type_ in _tensors(rng, plan):
        writer.add_tensor(name, data, raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(path)


def _plan(arch: str, tensor_type: str, keywords: dict[str, Any]) -> tuple[_Plan, dict[str, Any]]:
    known = {known.name for known in fields(TinyShape)}
    if unknown := sorted(keywords.keys() - known):
        raise TypeError(f"unknown shape keyword {unknown[0]!r}; known are {sorted(known)}")
    row = _one_of("arch", arch, ARCHS)
    type_ = _one_of("tensor_type", tensor_type, {type_.name: type_ for type_ in WRITABLE})
    shape = TinyShape(**keywords)
    tokenizer = shape.tokenizer or row.tokenizer
    vocabulary = _one_of("tokenizer", tokenizer, _VOCABULARIES)(shape.vocab_size)
    n_block = FORMATS[type_].n_weights
    n_embd = shape.n_embd or max(64, n_block)
    if shape.head_dim is None and n_embd % shape.n_heads:
        raise ValueError(f"n_embd {n_embd} is no multiple of n_heads {shape.n_heads}")
    head_dim = shape.head_dim or n_embd // shape.n_heads
    plan = _Plan(
        arch=row,
        type=type_,
        shape=shape,
        n_embd=n_embd,
        n_ff=shape.n_ff or max(128, n_block),
        head_dim=head_dim,
        rope_dim=shape.rope_dim or head_dim,
        n_vocab=len(vocabulary["tokenizer.ggml.tokens"]),
        biases=row.biases if shape.biases is None else shape.biases,
    )
    _check(plan)
    keys = _keys(plan) | vocabulary | (shape.metadata or {})
    return plan, {key: value for key, value in keys.items() if value is not None}


def _one_of(what: str, name: str, table: Mapping[str, T]) -> T:
    if name not in table:
        raise ValueError(f"{what}: expected one of {', '.join(table)}, got {name!r}")
    return table[name]


def _check(plan: _Plan) -> None:
    """ValueError for a shape that no model of this kind can have."""
    shape = plan.shape
    if shape.n_kv_heads < 1 or shape.n_heads % shape.n_kv_heads:
        raise ValueError(f"n_heads {shape.n_heads} is no multiple of n_kv_heads {shape.n_kv_heads}")
    if plan.rope_dim % 2 or not 2 <= plan.rope_dim <= plan.head_dim:
        raise ValueError(
            f"rope_dim {plan.rope_dim}: expected an even number up to head_dim {plan.head_dim}"
        )
    n_block = FORMATS[plan.type].n_weights
    rows = {"n_embd": plan.n_embd, "n_ff": plan.n_ff, "q_dim": shape.n_heads * plan.head_dim}
    for name, length in rows.items():
        if length < 1 or length % n_block:
            raise ValueError(
                f"{name} {length} is no multiple of {plan.type.name}'s block of {n_block} weights"
            )
    if unknown := sorted((shape.rope_scaling or {}).keys() - set(_SCALING_KEYS)):
        raise ValueError(f"rope_scaling: unknown key {unknown[0]!r}; known are {_SCALING_KEYS}")


def _keys(plan: _Plan) -> dict[str, Any]:
    """The metadata that describes the model, without its vocabulary; None is left out."""
    shape, arch = plan.shape, plan.arch.gguf_name
    scaling = shape.rope_scaling or {}
    return {
        "general.architecture": arch,
        "general.name": f"tiny {arch} {plan.type.name}",
        f"{arch}.context_length": shape.context_length,
        f"{arch}.embedding_length": plan.n_embd,
        f"{arch}.block_count": shape.n_layers,
        f"{arch}.feed_forward_length": plan.n_ff,
        f"{arch}.attention.head_count": shape.n_heads,
        f"{arch}.attention.head_count_kv": shape.n_kv_heads,
        f"{arch}.attention.key_length": shape.head_dim,
        f"{arch}.attention.value_length": shape.head_dim,
        f"{arch}.attention.layer_norm_rms_epsilon": _NORM_EPS,
        f"{arch}.rope.dimension_count": plan.rope_dim,
        f"{arch}.rope.freq_base": shape.rope_theta,
        f"{arch}.expert_count": shape.n_experts if plan.arch.experts else None,
        f"{arch}.expert_used_count": shape.n_experts_used if plan.arch.experts else None,
        **{f"{arch}.rope.scaling.{key}": value for key, value in scaling.items()},
        "tokenizer.chat_template": shape.chat_template,
    }


_Tensor = tuple[str, NDArray[Any], GGMLQuantizationType]


def _tensors(rng: np.random.Generator, plan: _Plan) -> Iterator[_Tensor]:
    """Every tensor of the model: name, bytes (or F32 values), type."""
    shape, n_embd = plan.shape, plan.n_embd
    yield _matrix(rng, plan, "token_embd", plan.n_vocab, n_embd, _LOGIT_STD)
    if shape.rope_freqs:  # as Llama 3.1 has them: the slow pairs are slowed down further
        yield _vector("rope_freqs.weight", np.linspace(1.0, 8.0, plan.rope_dim // 2))
    if shape.rope_factors:
        yield _vector("rope_factors_short.weight", np.linspace(1.0, 1.5, plan.rope_dim // 2))
        yield _vector("rope_factors_long.weight", np.linspace(1.0, 6.0, plan.rope_dim // 2))
    for layer in range(shape.n_layers):
        yield from _layer(rng, plan, f"blk.{layer}")
    yield _norm(rng, "output_norm", n_embd)
    if not shape.tied:
        yield _matrix(rng, plan, "output", plan.n_vocab, n_embd, _LOGIT_STD)


def _layer(rng: np.random.Generator, plan: _Plan, prefix: str) -> Iterator[_Tensor]:
    shape, n_embd = plan.shape, plan.n_embd
    q_dim, kv_dim = shape.n_heads * plan.head_dim, shape.n_kv_heads * plan.head_dim
    of_attention, of_ffn = _NORMS[plan.arch.norms]
    for norm in of_attention:
        yield _norm(rng, f"{prefix}.{norm}", n_embd)
    qkv = [("attn_q", q_dim), ("attn_k", kv_dim), ("attn_v", kv_dim)]
    gate_up = [("ffn_gate", plan.n_ff), ("ffn_up", plan.n_ff)]
    if plan.arch.fused:
        qkv, gate_up = [("attn_qkv", q_dim + 2 * kv_dim)], [("ffn_up", 2 * plan.n_ff)]
    for name, n_out in qkv:
        yield _matrix(rng, plan, f"{prefix}.{name}", n_out, n_embd)
        if plan.biases:
            yield _vector(f"{prefix}.{name}.bias", rng.normal(0.0, 0.1, n_out))
    if plan.arch.qk_norm != "none":
        is_row = plan.arch.qk_norm == "row"
        yield _norm(rng, f"{prefix}.attn_q_norm", q_dim if is_row else plan.head_dim)
        yield _norm(rng, f"{prefix}.attn_k_norm", kv_dim if is_row else plan.head_dim)
    yield _matrix(rng, plan, f"{prefix}.attn_output", n_embd, q_dim)
    for norm in of_ffn:
        yield _norm(rng, f"{prefix}.{norm}", n_embd)
    if plan.arch.experts:
        yield from _experts(rng, plan, prefix)
        return
    for name, n_out in gate_up:
        yield _matrix(rng, plan, f"{prefix}.{name}", n_out, n_embd)
    yield _matrix(rng, plan, f"{prefix}.ffn_down", n_embd, plan.n_ff)


def _matrix(
    rng: np.random.Generator, plan: _Plan, name: str, n_out: int, n_in: int, gain: float = 1.0
) -> _Tensor:
    data = random_tensor(rng, (n_out, n_in), gain / n_in**0.5, plan.type)
    return f"{name}.weight", data, plan.type


def _experts(rng: np.random.Generator, plan: _Plan, prefix: str) -> Iterator[_Tensor]:
    """A router in F32, as llama.cpp keeps it, whose choices are clear, and the experts."""
    n, n_embd, n_ff = plan.shape.n_experts, plan.n_embd, plan.n_ff
    router = random_tensor(rng, (n, n_embd), 2.0 / n_embd**0.5, GGMLQuantizationType.F32)
    yield f"{prefix}.ffn_gate_inp.weight", router.view(np.float32), GGMLQuantizationType.F32
    for name, n_out, n_in in (("gate", n_ff, n_embd), ("up", n_ff, n_embd), ("down", n_embd, n_ff)):
        data = random_tensor(rng, (n, n_out, n_in), n_in**-0.5, plan.type)
        yield f"{prefix}.ffn_{name}_exps.weight", data, plan.type


def _norm(rng: np.random.Generator, name: str, n_embd: int) -> _Tensor:
    return _vector(f"{name}.weight", rng.normal(1.0, 0.1, n_embd))


def _vector(name: str, values: NDArray[np.float64]) -> _Tensor:
    return name, values.astype(np.float32), GGMLQuantizationType.F32
