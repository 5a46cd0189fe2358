"""Attention of single tokens over the FP16 cache, against torch's attention over the same bytes."""

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from attention import GEMMA2_9B, LLAMA_1B, LLAMA_8B, TINY, Heads, check, drawn
from cases import Arrays, Case, Scale, poison
from harness import main
from rivals import Rival, randn

from m40llm.kernels.attention_decode import attention_decode, partial_shape, split_count

SMALL = [(TINY, 2, 130)]
LENGTHS = (4096, 1024, 128, 16384, 512, 2048, 8192)
LARGE = [
    *((heads, batch, n) for n in LENGTHS[:4] for heads in (LLAMA_1B, LLAMA_8B) for batch in (1, 8)),
    *((heads, batch, n) for n in LENGTHS[4:] for heads in (LLAMA_1B, LLAMA_8B) for batch in (1, 8)),
    *((GEMMA2_9B, batch, 4096) for batch in (1, 8)),
]
ASSUMED_SMS = 132  # what splits are made for where the number of SMs is not known yet


def case_of(heads: Heads, batch: int, n_keys: int) -> Case:
    shape = (batch, heads.n_heads, heads.head_dim)
    n_splits = split_count(batch, heads.n_heads, heads.n_kv_heads, n_keys, ASSUMED_SMS)

    def arrays() -> Arrays:
        made = drawn(heads, np.arange(batch), np.full(batch, n_keys - 1), batch)
        made["partial"] = poison(partial_shape(*shape, n_splits))
        return {**made, "arrived": np.zeros(shape[:2], np.int32), "out": poison(shape)}

    def launch(b: Any, stream: Any) -> None:
        args = (b[name] for name in ("q", "k", "v", "seq", "pos", "partial", "arrived", "out"))
        attention_decode(*args, scale=heads.scale, softcap=heads.softcap, stream=stream)

    n_cached = batch * heads.n_kv_heads * n_keys * heads.head_dim
    return Case(
        name=f"{heads.model} batch {batch}, {n_keys} keys",
        shape={
            "n_heads": heads.n_heads, "n_kv_heads": heads.n_kv_heads, "head_dim": heads.head_dim,
            "batch": batch, "n_keys": n_keys, "n_splits": n_splits,
        },
        arrays=arrays,
        launch=launch,
        outputs=("out",),
        check=lambda a, got: check(heads, a, got["out"]),
        bytes_read=4 * n_cached + 4 * int(np.prod(shape)),
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
