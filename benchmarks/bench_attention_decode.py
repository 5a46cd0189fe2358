"""Attention of single tokens over the KV cache, FP16 and Q8_0, against torch's over FP16."""

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

from m40llm.kernels.attention_decode import (
    attention_decode,
    attention_decode_q8,
    partial_shape,
    split_count,
)

SMALL = [(TINY, 2, 130, False), (TINY, 2, 130, True)]
LENGTHS = (4096, 1024, 128, 16384, 512, 2048, 8192)
MODELS = [(heads, batch) for heads in (LLAMA_1B, LLAMA_8B) for batch in (1, 8)]
LARGE = [
    *((*model, n, False) for n in LENGTHS[:2] for model in MODELS),
    *((*model, n, True) for n in LENGTHS[:1] for model in MODELS),
    *((*model, n, False) for n in LENGTHS[2:] for model in MODELS),
    *((*model, n, True) for n in LENGTHS[1:4] for model in MODELS),
    *((GEMMA2_9B, batch, 4096, False) for batch in (1, 8)),
]
ASSUMED_SMS = 132  # what splits are made for where the number of SMs is not known yet


def case_of(heads: Heads, batch: int, n_keys: int, is_q8: bool) -> Case:
    shape = (batch, heads.n_heads, heads.head_dim)
    n_splits = split_count(batch, heads.n_heads, heads.n_kv_heads, n_keys, ASSUMED_SMS)

    def arrays() -> Arrays:
        made = drawn(heads, np.arange(batch), np.full(batch, n_keys - 1), batch)
        made["partial"] = poison(partial_shape(*shape, n_splits))
        made |= {"arrived": np.zeros(shape[:2], np.int32), "out": poison(shape)}
        return in_blocks(made) if is_q8 else made

    def launch(b: Any, stream: Any) -> None:
        names = "q", *cache_names(is_q8), "seq", "pos", "partial", "arrived", "out"
        attend = attention_decode_q8 if is_q8 else attention_decode
        attend(
            *(b[name] for name in names), scale=heads.scale, softcap=heads.softcap, stream=stream
        )

    n_cached = 2 * batch * heads.n_kv_heads * n_keys * heads.head_dim
    cache_bytes = n_cached // 32 * 34 if is_q8 else 2 * n_cached
    return Case(
        name=f"{heads.model} batch {batch}, {n_keys} keys{', Q8_0' if is_q8 else ''}",
        shape={
            "n_heads": heads.n_heads, "n_kv_heads": heads.n_kv_heads, "head_dim": heads.head_dim,
            "batch": batch, "n_keys": n_keys, "n_splits": n_splits,
            "cache": "Q8_0" if is_q8 else "F16",
        },
        arrays=arrays,
        launch=launch,
        outputs=("out",),
        check=lambda a, got: check(heads, a, got["out"]),
        bytes_read=cache_bytes + 4 * int(np.prod(shape)),
        bytes_written=4 * int(np.prod(shape)),
        n_flops=4 * batch * heads.n_heads * n_keys * heads.head_dim,
        rival=rival_of(heads, batch, n_keys),
    )  # fmt: skip


def rival_of(heads: Heads, batch: int, n_keys: int) -> Rival:
    def make(torch: Any) -> Any:
        q = randn(torch, batch, heads.n_heads, 1, heads.head_dim, dtype="float16")
        shape = (batch, heads.n_kv_heads, n_keys, heads.head_dim)
        k, v = (randn(torch, *shape, dtype="float16") for _ in range(2))
        attend = torch.nn.functional.scaled_dot_product_attention
        return lambda: attend(q, k, v, enable_gqa=True)

    return Rival("torch scaled_dot_product_attention float16", make)


def cases(scale: Scale) -> Iterator[Case]:
    yield from (case_of(*each) for each in scale.pick(SMALL, LARGE, 8))


if __name__ == "__main__":
    sys.exit(main("attention_decode", cases, __doc__))
