"""RoPE, fused with the append to a KV cache in Q8_0. torch has no such operation."""

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from attention import LLAMA_1B, LLAMA_8B, TINY, Heads
from bench_rope import N_POS, turned
from bench_rope import drawn as drawn_f16
from bounds import equal, share_of
from cases import Arrays, Case, Scale
from harness import main

from m40llm import reference
from m40llm.kernels.rope_append_q8 import rope_append_q8

SMALL = [(TINY, 3, "interleaved")]
LARGE = [
    *((heads, n, "interleaved") for heads in (LLAMA_1B, LLAMA_8B) for n in (1, 512)),
    *((LLAMA_8B, n, "interleaved") for n in (8, 2048)),
    (LLAMA_8B, 512, "half"),
]
PARTS = ("k_quants", "k_scales", "v_quants", "v_scales")


def drawn(heads: Heads, n_tokens: int) -> Arrays:
    """Each token at a position of its own of one sequence."""
    made = drawn_f16("rope_append", heads, n_tokens)
    shape = made.pop("k_cache").shape
    del made["v_cache"]
    quants = np.full(shape, 99, np.int8)
    scales = np.full((*shape[:3], shape[3] // 32), np.nan, np.float16)
    return {**made, **dict(zip(PARTS, (quants, scales) * 2, strict=True))}


def launch(layout: str, b: Any, stream: Any) -> None:
    caches = (b[name] for name in PARTS)
    table = b["seq"], b["pos"], b["cos"], b["sin"], layout
    rope_append_q8(b["q"], b["k"], b["v"], *caches, *table, stream=stream)


def check(layout: str, a: Arrays, got: Arrays) -> float:
    """V's blocks are exact. K's elements are half a step off at most, but for FP32's rounding
    before and FP16's of the scale, 2^-11 of up to 127 steps."""
    share = share_of(got["q"], *turned(a, "q", layout))
    exact, bound = turned(a, "k", layout)
    quants, scales = (got[name][0][:, a["pos"]].swapaxes(0, 1) for name in PARTS[:2])
    step = np.repeat(scales.astype(np.float64), 32, axis=-1)
    held = reference.dequantise_q8(quants, scales)
    share = max(share, share_of(held, exact, (0.5 + 127 * 2.0**-11) * step + 2 * bound))
    of_v = reference.append_q8(a["v"], a["v_quants"], a["v_scales"], a["seq"], a["pos"])
    share = max(share, equal(got["v_quants"], of_v[0]))
    np.testing.assert_array_equal(got["v_scales"], of_v[1])
    untouched = np.setdiff1d(np.arange(N_POS), a["pos"])
    return share if (got["k_quants"][0][:, untouched] == 99).all() else float("inf")


def case_of(heads: Heads, n_tokens: int, layout: str) -> Case:
    n_q = n_tokens * heads.n_heads * heads.head_dim
    n_kv = 2 * n_tokens * heads.n_kv_heads * heads.head_dim
    return Case(
        name=f"rope_append_q8 {heads.model} {n_tokens} tokens, {layout}",
        shape={
            "n_heads": heads.n_heads, "n_kv_heads": heads.n_kv_heads, "head_dim": heads.head_dim,
            "n_tokens": n_tokens, "layout": layout,
        },
        arrays=lambda: drawn(heads, n_tokens),
        launch=lambda b, stream: launch(layout, b, stream),
        outputs=("q", *PARTS),
        check=lambda a, got: check(layout, a, got),
        bytes_read=4 * n_q + 4 * n_kv + 4 * n_tokens * heads.head_dim,
        bytes_written=4 * n_q + 34 * n_kv // 32,
    )  # fmt: skip


def cases(scale: Scale) -> Iterator[Case]:
    yield from (case_of(*each) for each in scale.pick(SMALL, LARGE, 6))


if __name__ == "__main__":
    sys.exit(main("rope_append_q8", cases, __doc__))
