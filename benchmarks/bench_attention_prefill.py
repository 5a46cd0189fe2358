"""Causal attention of a prompt, cache FP16 or Q8_0, against torch's in FP32 without TF32."""

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from attention import (
    GEMMA2_9B,
    LLAMA_1B,
    LLAMA_8B,
    TINY,
    Heads,
    cache_names,
    check,
    drawn,
    in_blocks,
)
from cases import Arrays, Case, Scale, poison
from harness import main
from rivals import Rival, randn

from m40llm.kernels.attention_prefill import attention_prefill, attention_prefill_q8

SMALL = [(TINY, 40, False), (TINY, 40, True)]
LARGE = [
    *((heads, n, False) for n in (2048, 512) for heads in (LLAMA_1B, LLAMA_8B)),
    *((heads, 2048, True) for heads in (LLAMA_1B, LLAMA_8B)),
    *((heads, 8192, False) for heads in (LLAMA_1B, LLAMA_8B)),
    *((heads, 512, True) for heads in (LLAMA_1B, LLAMA_8B)),
    (GEMMA2_9B, 2048, False),
]


def case_of(heads: Heads, n_tokens: int, is_q8: bool) -> Case:
    shape = (n_tokens, heads.n_heads, heads.head_dim)

    def arrays() -> Arrays:
        made = drawn(heads, np.zeros(n_tokens), np.arange(n_tokens), 1)
        made["out"] = poison(shape)
        return in_blocks(made) if is_q8 else made

    def launch(b: Any, stream: Any) -> None:
        names = "q", *cache_names(is_q8), "seq", "pos", "out"
        attend = attention_prefill_q8 if is_q8 else attention_prefill
        attend(
            *(b[name] for name in names), scale=heads.scale, softcap=heads.softcap, stream=stream
        )

    n_pairs = n_tokens * (n_tokens + 1) // 2
    n_cached = 2 * heads.n_kv_heads * n_tokens * heads.head_dim
    cache_bytes = n_cached // 32 * 34 if is_q8 else 2 * n_cached
    return Case(
        name=f"{heads.model} {n_tokens} tokens{', Q8_0' if is_q8 else ''}",
        shape={
            "n_heads": heads.n_heads, "n_kv_heads": heads.n_kv_heads, "head_dim": heads.head_dim,
            "n_tokens": n_tokens, "cache": "Q8_0" if is_q8 else "F16",
        },
        arrays=arrays,
        launch=launch,
        outputs=("out",),
        check=lambda a, got: check(heads, a, got["out"]),
        bytes_read=cache_bytes + 4 * int(np.prod(shape)),
        bytes_written=4 * int(np.prod(shape)),
        n_flops=4 * heads.n_heads * heads.head_dim * n_pairs,
        rival=rival_of(heads, n_tokens),
    )  # fmt: skip


def rival_of(heads: Heads, n_tokens: int) -> Rival:
    """K and V are repeated to all heads: no kernel of torch's takes groups of them in FP32."""

    def make(torch: Any) -> Any:
        q, k, v = (randn(torch, 1, heads.n_heads, n_tokens, heads.head_dim) for _ in range(3))
        attend = torch.nn.functional.scaled_dot_product_attention
        return lambda: attend(q, k, v, is_causal=True)

    return Rival("torch scaled_dot_product_attention float32", make)


def cases(scale: Scale) -> Iterator[Case]:
    yield from (case_of(*each) for each in scale.pick(SMALL, LARGE, 4))


if __name__ == "__main__":
    sys.exit(main("attention_prefill", cases, __doc__))
