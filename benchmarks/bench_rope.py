"""RoPE in place, and fused with the append to the KV cache. torch has no such operation."""

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from attention import LLAMA_1B, LLAMA_8B, TINY, Heads
from bounds import HALF_TINY, HALF_ULP, share_of
from cases import Arrays, Case, Scale, poison
from harness import main

from m40llm import reference
from m40llm.fuzz.bounds import UNIT_ROUNDOFF
from m40llm.kernels.rope import rope, rope_append

N_POS = 4096
SMALL = [("rope_append", TINY, 3, "interleaved"), ("rope", TINY, 3, "half")]
LARGE = [
    *(("rope_append", heads, n, "interleaved") for heads in (LLAMA_1B, LLAMA_8B) for n in (1, 512)),
    *(("rope", LLAMA_8B, n, layout) for n in (1, 512) for layout in ("interleaved", "half")),
    *(("rope_append", LLAMA_8B, n, "interleaved") for n in (8, 2048)),
    ("rope_append", LLAMA_8B, 512, "half"),
]


def drawn(form: str, heads: Heads, n_tokens: int) -> Arrays:
    """Each token at a position of its own of one sequence."""
    rng, n_pairs = np.random.default_rng(n_tokens), heads.head_dim // 2
    angles = np.outer(np.arange(N_POS), 10000.0 ** (-np.arange(n_pairs) / n_pairs))
    made = {
        "q": rng.standard_normal((n_tokens, heads.n_heads, heads.head_dim), np.float32),
        "pos": rng.permutation(N_POS)[:n_tokens].astype(np.int32),
        "cos": np.cos(angles).astype(np.float32),
        "sin": np.sin(angles).astype(np.float32),
    }
    if form == "rope_append":
        shape = (n_tokens, heads.n_kv_heads, heads.head_dim)
        made |= {name: rng.standard_normal(shape, np.float32) for name in "kv"}
        cache = poison((1, heads.n_kv_heads, N_POS, heads.head_dim), np.float16)
        made |= {"k_cache": cache, "v_cache": cache, "seq": np.zeros(n_tokens, np.int32)}
    return made


def launch(form: str, layout: str, b: Any, stream: Any) -> None:
    table = b["pos"], b["cos"], b["sin"], layout
    if form == "rope":
        rope(b["q"], *table, stream=stream)
    else:
        caches = b["k_cache"], b["v_cache"]
        rope_append(b["q"], b["k"], b["v"], *caches, b["seq"], *table, stream=stream)


def turned(a: Arrays, name: str, layout: str) -> tuple[np.ndarray, np.ndarray]:
    """(exact, bound): two products and a sum, three roundings of at most |a| + |b|."""
    x = a[name]
    exact = reference.rope(x, a["pos"], a["cos"], a["sin"], layout)
    return exact, 3 * UNIT_ROUNDOFF * 2 * np.abs(x).max(axis=-1, keepdims=True)


def check(layout: str, a: Arrays, got: Arrays) -> float:
    """The cache has one rounding to FP16 more; where no token went it is as it was."""
    share = share_of(got["q"], *turned(a, "q", layout))
    if "k" not in a:
        return share
    exact, bound = turned(a, "k", layout)
    appended = got["k_cache"][0][:, a["pos"]].swapaxes(0, 1)
    half = HALF_ULP * (np.abs(exact) + bound) + HALF_TINY
    share = max(share, share_of(appended, exact, bound + half))
    v = reference.append(a["v"], a["v_cache"], a["seq"], a["pos"])
    np.testing.assert_array_equal(got["v_cache"], v)
    untouched = np.setdiff1d(np.arange(N_POS), a["pos"])
    return share if np.isnan(got["k_cache"][0][:, untouched]).all() else float("inf")


def case_of(form: str, heads: Heads, n_tokens: int, layout: str) -> Case:
    n_q = n_tokens * heads.n_heads * heads.head_dim
    n_kv = 2 * n_tokens * heads.n_kv_heads * heads.head_dim if form == "rope_append" else 0
    return Case(
        name=f"{form} {heads.model} {n_tokens} tokens, {layout}",
        shape={
            "form": form, "n_heads": heads.n_heads, "n_kv_heads": heads.n_kv_heads,
            "head_dim": heads.head_dim, "n_tokens": n_tokens, "layout": layout,
        },
        arrays=lambda: drawn(form, heads, n_tokens),
        launch=lambda b, stream: launch(form, layout, b, stream),
        outputs=("q", "k_cache", "v_cache") if n_kv else ("q",),
        check=lambda a, got: check(layout, a, got),
        bytes_read=4 * n_q + 4 * n_kv + 4 * n_tokens * heads.head_dim,
        bytes_written=4 * n_q + 2 * n_kv,
    )  # fmt: skip


def cases(scale: Scale) -> Iterator[Case]:
    yield from (case_of(*each) for each in scale.pick(SMALL, LARGE, 6))


if __name__ == "__main__":
    sys.exit(main("rope", cases, __doc__))
