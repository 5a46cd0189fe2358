"""Makes architectures.json: what HF transformers computes, in FP64, from our tiny random models.

    pip install torch transformers gguf
    PYTHONPATH=. python tests/goldens/make_architectures.py > tests/goldens/architectures.json

Run by hand, its result stored: torch is no test dependency. Weights are read and dequantised by the
gguf package; names and the order of rows are undone here, as llama.cpp's converter makes them, and
share no code with m40llm's reading of them.
"""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from transformers import AutoConfig, AutoModelForCausalLM

from m40llm.testing import write_tiny_gguf

N_POSITIONS = 64
N_GREEDY = 16
COLUMNS = range(3, 259, 32)  # of the logits: those that are kept

SHAPE: dict[str, Any] = {"n_layers": 3, "context_length": 128}
LONGROPE = {  # all that llama.cpp's converter writes of it
    "original_context_length": 32,
    "attn_factor": 1.1832159757614136,  # sqrt(1 + ln 4 / ln 32)
}
GRANITE = {
    "granite.attention.scale": 0.125,
    "granite.embedding_scale": 3.0,
    "granite.residual_scale": 0.5,
    "granite.logit_scale": 2.0,
}
GEMMA2 = {  # of scores with std 1 and logits with std 4: caps that change each
    "gemma2.attention.sliding_window": 12,
    "gemma2.attn_logit_softcapping": 1.5,
    "gemma2.final_logit_softcapping": 6.0,
}
GEMMA3 = {
    "gemma3.attention.sliding_window": 12,
    "gemma3.rope.freq_base": 1000000.0,
    "gemma3.rope.dimension_count": None,  # as its converter leaves it out
}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"arch": "llama", "rope_freqs": False},
    "mistral": {"arch": "mistral", "head_dim": 24},
    "qwen2": {"arch": "qwen2", "tied": True},
    "qwen3": {"arch": "qwen3", "head_dim": 24},
    "smollm3": {"arch": "smollm3", "n_layers": 5},
    "olmo2": {"arch": "olmo2"},
    "granite": {"arch": "granite", "metadata": GRANITE},
    "gemma2": {"arch": "gemma2", "head_dim": 24, "metadata": GEMMA2},
    "gemma3": {"arch": "gemma3", "n_layers": 7, "head_dim": 24, "metadata": GEMMA3},
    "phi3": {"arch": "phi3", "metadata": {"phi3.attention.sliding_window": 20}},
    "phi3, longrope": {"arch": "phi3", "rope_factors": True, "rope_scaling": LONGROPE},
    "phi3, longrope in its first context": {
        "arch": "phi3",
        "rope_factors": True,
        "rope_scaling": {"original_context_length": 128},
    },
    "mixtral": {"arch": "mixtral"},
    "qwen3moe": {"arch": "qwen3moe", "n_experts": 16, "n_experts_used": 4, "n_ff": 64},
    "mixtral in Q3_K": {"arch": "mixtral", "tensor_type": "Q3_K"},
    "mixtral in IQ4_NL": {"arch": "mixtral", "tensor_type": "IQ4_NL"},
    "qwen3moe in Q2_K": {"arch": "qwen3moe", "tensor_type": "Q2_K"},
    "qwen3moe in MXFP4": {"arch": "qwen3moe", "tensor_type": "MXFP4"},
    "llama in IQ4_XS": {"arch": "llama", "tensor_type": "IQ4_XS"},
    "qwen3 in Q8_0": {"arch": "qwen3", "tensor_type": "Q8_0", "tied": True},
    "smollm3 in Q4_K": {"arch": "smollm3", "tensor_type": "Q4_K", "n_layers": 4},
    "olmo2 in Q5_1": {"arch": "olmo2", "tensor_type": "Q5_1"},
    "olmo2 in Q5_K": {"arch": "olmo2", "tensor_type": "Q5_K"},
    "granite in Q4_1": {"arch": "granite", "tensor_type": "Q4_1", "metadata": GRANITE},
    "gemma2 in Q6_K": {"arch": "gemma2", "tensor_type": "Q6_K", "tied": True, "metadata": GEMMA2},
    "gemma3 in Q5_0": {"arch": "gemma3", "tensor_type": "Q5_0", "metadata": GEMMA3},
    "phi3 in Q4_0": {"arch": "phi3", "tensor_type": "Q4_0"},
    "phi3 in Q6_K": {"arch": "phi3", "tensor_type": "Q6_K"},
}
NAMES = {  # of a layer
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
}
GEMMAS = ("gemma2", "gemma3")
SPECIAL = {
    ("phi3", "ffn_up"): "mlp.gate_up_proj",
    ("olmo2", "post_ffw_norm"): "post_feedforward_layernorm",
    ("olmo2", "post_attention_norm"): "post_attention_layernorm",
    **{
        (arch, name): theirs
        for arch in GEMMAS
        for name, theirs in (
            ("post_attention_norm", "post_attention_layernorm"),
            ("ffn_norm", "pre_feedforward_layernorm"),
            ("post_ffw_norm", "post_feedforward_layernorm"),
        )
    },
}
WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
INTERLEAVED = ("llama", "smollm3", "granite")  # whose Q and K rows the converter permutes


class Torch64:
    """torch, to modules of transformers: what they would compute in FP32, they compute in FP64."""

    float32 = float = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def compute_in_fp64() -> None:
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign, assignment]
    for name, module in list(sys.modules.items()):
        if name.startswith("transformers.") and getattr(module, "torch", None) is torch:
            module.torch = Torch64()  # type: ignore[attr-defined]


class Reading:
    """A GGUF file through the gguf package alone."""

    def __init__(self, path: Path) -> None:
        reader = GGUFReader(path)
        self.arch = str(reader.fields["general.architecture"].contents())
        self.keys = {name: field.contents() for name, field in reader.fields.items()}
        self.tensors = {
            t.name: dequantize(t.data, t.tensor_type).astype(np.float64) for t in reader.tensors
        }

    def key(self, name: str, default: Any = None) -> Any:
        return self.keys.get(f"{self.arch}.{name}", default)

    def config(self) -> Any:
        n_vocab, n_embd = self.tensors["token_embd.weight"].shape
        n_heads = self.key("attention.head_count")
        fields = {
            "vocab_size": n_vocab,
            "hidden_size": n_embd,
            "intermediate_size": self.key("feed_forward_length"),
            "num_hidden_layers": self.key("block_count"),
            "num_attention_heads": n_heads,
            "num_key_value_heads": self.key("attention.head_count_kv"),
            "head_dim": self.key("attention.key_length", n_embd // n_heads),
            "max_position_embeddings": self.key("context_length"),
            "rms_norm_eps": self.key("attention.layer_norm_rms_epsilon"),
            "rope_theta": self.key("rope.freq_base"),
            "tie_word_embeddings": "output.weight" not in self.tensors,
            "attn_implementation": "eager",
            "pad_token_id": None,
        }
        has_experts = self.key("expert_count") is not None
        theirs = {"gemma3": "gemma3_text", "qwen3moe": "qwen3_moe"}
        name = theirs.get(self.arch, self.arch)
        if has_experts:
            name = "mixtral" if self.arch == "llama" else name
            fields["experts_implementation"] = "eager"  # the others know no FP64
            for key in ("num_local_experts", "num_experts"):
                fields[key] = self.key("expert_count")
            fields["num_experts_per_tok"] = self.key("expert_used_count")
            fields["moe_intermediate_size"] = fields["intermediate_size"]
            fields["norm_topk_prob"] = True
        return AutoConfig.for_model(name, **fields, **self._more(fields["head_dim"]))

    def _more(self, head_dim: int) -> dict[str, Any]:
        if self.arch == "granite":
            return {
                "attention_multiplier": self.key("attention.scale"),
                "embedding_multiplier": self.key("embedding_scale"),
                "residual_multiplier": self.key("residual_scale"),
                "logits_scaling": self.key("logit_scale"),
            }
        if self.arch in GEMMAS:
            caps = ("attn_logit_softcapping", "final_logit_softcapping")
            return {
                "sliding_window": self.key("attention.sliding_window"),
                "query_pre_attn_scalar": head_dim,
                "rope_local_base_freq": 10000.0,  # Gemma 3's alone
                "hidden_activation": "gelu_pytorch_tanh",
                **{key: self.key(key) for key in caps},
            }
        if self.arch != "phi3":
            return {}
        more: dict[str, Any] = {"sliding_window": self.key("attention.sliding_window")}
        if "rope_factors_long.weight" in self.tensors:
            more["original_max_position_embeddings"] = self.key(
                "rope.scaling.original_context_length"
            )
            more["rope_scaling"] = {
                "type": "longrope",
                "short_factor": self.tensors["rope_factors_short.weight"].tolist(),
                "long_factor": self.tensors["rope_factors_long.weight"].tolist(),
            }
        return more

    def state(self) -> dict[str, torch.Tensor]:
        found = {}
        for name, values in self.tensors.items():
            if name.startswith("rope_"):
                continue
            stem, _, kind = name.rpartition(".")
            if stem in WHOLE:
                is_gemma_norm = self.arch in GEMMAS and stem == "output_norm"
                found[f"{WHOLE[stem]}.{kind}"] = values - 1 if is_gemma_norm else values
                continue
            _, layer, part = stem.split(".")
            if part.endswith("_exps"):
                self._add_experts(found, layer, part, values)
                continue
            if part in ("attn_q", "attn_k") and self.arch in INTERLEAVED:
                suffix = "" if part == "attn_q" else "_kv"
                values = halves(values, self.key(f"attention.head_count{suffix}"))
            theirs = SPECIAL.get((self.arch, part), NAMES.get(part))
            if self.arch in GEMMAS and "norm" in part:
                values = values - 1  # which its converter adds, and its code again
            found[f"model.layers.{layer}.{theirs}.{kind}"] = values
        return {name: torch.from_numpy(values.copy()) for name, values in found.items()}

    def _add_experts(self, found: dict[str, Any], layer: str, part: str, values: Any) -> None:
        """Gate and up of an expert are one tensor there, gate first."""
        at = f"model.layers.{layer}.mlp.experts"
        if part == "ffn_down_exps":
            found[f"{at}.down_proj"] = values
        elif part == "ffn_gate_exps":
            up = self.tensors[f"blk.{layer}.ffn_up_exps.weight"]
            found[f"{at}.gate_up_proj"] = np.concatenate((values, up), axis=1)


def halves(rows: Any, n_heads: int) -> Any:
    """Rows of a head that are pairs (0, 1), (2, 3), ... as two halves."""
    by_pair = rows.reshape(n_heads, rows.shape[0] // n_heads // 2, 2, *rows.shape[1:])
    return by_pair.swapaxes(1, 2).reshape(rows.shape)


@torch.no_grad()
def golden(path: Path) -> dict[str, Any]:
    reading = Reading(path)
    model = AutoModelForCausalLM.from_config(reading.config(), dtype=torch.float64).eval()
    state = reading.state()
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected, unexpected
    assert set(missing) <= {"lm_head.weight"}, missing
    model.tie_weights()
    compute_in_fp64()
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    n_vocab = state["model.embed_tokens.weight"].shape[0]
    ids = np.random.default_rng(7).integers(0, n_vocab, N_POSITIONS).tolist()
    logits = model(torch.tensor([ids])).logits[0]
    out: list[int] = []
    gaps = []
    for _ in range(N_GREEDY):
        best = model(torch.tensor([ids + out])).logits[0, -1].topk(2)
        out.append(int(best.indices[0]))
        gaps.append(round(float(best.values[0] - best.values[1]), 6))
    kept = logits[:, list(COLUMNS)]
    assert kept.dtype == torch.float64
    return {
        "ids": ids,
        "logits": [[round(value, 7) for value in row] for row in kept.tolist()],
        "greedy": out,
        "gaps": gaps,
    }


def main() -> None:
    with TemporaryDirectory() as folder:
        found = {}
        for name, shape in MODELS.items():
            path = write_tiny_gguf(Path(folder) / "tiny.gguf", **{**SHAPE, **shape})
            found[name] = {"shape": {**SHAPE, **shape}, **golden(path)}
            print(name, found[name]["greedy"], min(found[name]["gaps"]), file=sys.stderr)
    json.dump({"columns": list(COLUMNS), "models": found}, sys.stdout)


if __name__ == "__main__":
    main()
