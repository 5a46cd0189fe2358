"""Makes sites.json: what HF transformers computes on its way through our tiny models, in FP64.

    pip install torch transformers gguf
    PYTHONPATH=. python tests/goldens/make_sites.py > tests/goldens/sites.json

Models, prompts and weights are those of make_architectures.py. Run by hand, its result stored.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from make_architectures import (
    GEMMAS,
    INTERLEAVED,
    MODELS,
    N_POSITIONS,
    SHAPE,
    Reading,
    compute_in_fp64,
)
from transformers import AutoModelForCausalLM

from m40llm.testing import write_tiny_gguf

NAMES = (
    "llama", "mistral", "qwen2", "qwen3", "smollm3", "olmo2", "granite", "gemma2", "gemma3", "phi3",
    "mixtral", "qwen3moe",
)  # fmt: skip
POSITIONS = (5, N_POSITIONS - 1)
N_KEPT = 7  # values of a row, evenly spread


def pairs(rows: Any, n_heads: int) -> Any:
    """Elements of heads in two halves, in the file's order: pairs (0, 1), (2, 3), ..."""
    by_half = rows.reshape(rows.shape[0], n_heads, 2, -1)
    return by_half.swapaxes(2, 3).reshape(rows.shape)


class Seen:
    """Values of sites, as hooks of the modules see them: [t, ...]."""

    def __init__(self, model: Any, reading: Reading) -> None:
        self.of: dict[str, Any] = {}
        self.arch, config = reading.arch, model.config
        self.n_heads, self.n_kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.factor = reading.key("residual_scale", 1.0)
        for n, layer in enumerate(model.model.layers):
            self._watch(f"blk.{n}", layer)
        self._outputs(model.model.norm, "norm")
        self._inputs(model.model.layers[0], "embd")

    def put(self, site: str, value: Any) -> None:
        value = value[0] if isinstance(value, tuple) else value
        self.of[site] = value.detach().reshape(N_POSITIONS, -1).numpy()

    def _outputs(self, module: Any, site: str, then: Callable[[Any], Any] | None = None) -> None:
        def hook(_module: Any, _args: Any, output: Any) -> None:
            output = output[0] if isinstance(output, tuple) else output
            self.put(site, then(output) if then else output)

        module.register_forward_hook(hook)

    def _inputs(self, module: Any, site: str) -> None:
        def hook(_module: Any, args: Any, kwargs: Any) -> None:
            self.put(site, args[0] if args else kwargs["hidden_states"])

        module.register_forward_pre_hook(hook, with_kwargs=True)

    def _watch(self, at: str, layer: Any) -> None:
        attention, mlp, arch = layer.self_attn, layer.mlp, self.arch
        self._inputs(layer, f"{at}.resid_pre")
        self._outputs(layer, f"{at}.resid_post")
        has_pre_norms = arch != "olmo2"
        if has_pre_norms:
            self._outputs(layer.input_layernorm, f"{at}.attn_norm")
            self._inputs(mlp, f"{at}.ffn_norm")
        self._watch_heads(at, attention)
        self._inputs(attention.o_proj, f"{at}.z")
        behind = arch in GEMMAS or arch == "olmo2"  # their norms
        after_attention = layer.post_attention_layernorm if behind else attention.o_proj
        self._outputs(after_attention, f"{at}.attn_out", lambda x: x * self.factor)
        after_mlp = layer.post_feedforward_layernorm if behind else mlp
        self._outputs(after_mlp, f"{at}.mlp_out", lambda x: x * self.factor)
        if hasattr(mlp, "experts"):
            return
        self._inputs(mlp.down_proj, f"{at}.act")
        if arch == "phi3":
            self._outputs(mlp.gate_up_proj, f"{at}.gate", lambda x: x.chunk(2, -1)[0])
            self._outputs(mlp.gate_up_proj, f"{at}.up", lambda x: x.chunk(2, -1)[1])
        else:
            self._outputs(mlp.gate_proj, f"{at}.gate")
            self._outputs(mlp.up_proj, f"{at}.up")

    def _watch_heads(self, at: str, attention: Any) -> None:
        if self.arch == "phi3":
            width = attention.head_dim
            ends = [self.n_heads * width, (self.n_heads + self.n_kv_heads) * width]
            for n, name in enumerate("qkv"):
                self._outputs(
                    attention.qkv_proj,
                    f"{at}.{name}",
                    lambda x, n=n: x.tensor_split(ends, -1)[n],
                )
            return
        for name in "qkv":
            self._outputs(getattr(attention, f"{name}_proj"), f"{at}.{name}")
        if hasattr(attention, "q_norm"):
            by_row = self.arch == "olmo2"
            for name in "qk":
                # [1, heads, t, d] or [1, t, heads, d]: whichever it is called with
                def ours(x: Any, by_row: bool = by_row) -> Any:
                    return x if by_row or x.shape[1] == N_POSITIONS else x.transpose(1, 2)

                self._outputs(getattr(attention, f"{name}_norm"), f"{at}.{name}_norm", ours)

    def finished(self, logits: Any, attentions: Any) -> dict[str, Any]:
        for n, pattern in enumerate(attentions):
            self.put(f"blk.{n}.pattern", pattern[0].transpose(0, 1))
        self.put("logits", logits)
        for site in self.of:
            name = site.rpartition(".")[2]
            if self.arch in INTERLEAVED and name in ("q", "k"):
                n_heads = self.n_heads if name == "q" else self.n_kv_heads
                self.of[site] = pairs(self.of[site], n_heads)
        return self.of


@torch.no_grad()
def golden(path: Path) -> dict[str, Any]:
    reading = Reading(path)
    model = AutoModelForCausalLM.from_config(reading.config(), dtype=torch.float64).eval()
    model.load_state_dict(reading.state(), strict=False)
    model.tie_weights()
    compute_in_fp64()
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    seen = Seen(model, reading)
    n_vocab = model.config.vocab_size
    ids = np.random.default_rng(7).integers(0, n_vocab, N_POSITIONS).tolist()
    out = model(torch.tensor([ids]), output_attentions=True)
    sites = seen.finished(out.logits[0], out.attentions)
    return {
        site: [kept(values[pos]) for pos in POSITIONS] for site, values in sorted(sites.items())
    }


def kept(row: Any) -> list[float]:
    at = np.linspace(0, row.size - 1, N_KEPT).astype(int)
    return [float(f"{value:.9g}") for value in row[at]]


def main() -> None:
    with TemporaryDirectory() as folder:
        found = {}
        for name in NAMES:
            path = write_tiny_gguf(Path(folder) / "tiny.gguf", **{**SHAPE, **MODELS[name]})
            found[name] = golden(path)
            print(name, len(found[name]), file=sys.stderr)
    json.dump({"positions": list(POSITIONS), "models": found}, sys.stdout)


if __name__ == "__main__":
    main()
