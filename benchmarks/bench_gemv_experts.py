"""Matrix x vector with chosen experts, in the shapes of Qwen3-30B-A3B and Mixtral 8x7B.

Each token of a set has experts of its own, drawn without repeats as long as there are some, and
the next set has others: a share of the read ceiling is that of the experts' bytes, cold. The rows
`layer` are all that an MLP of Qwen3-30B-A3B takes behind its norm, router to residual stream; their
bytes are those of the chosen experts alone.
"""

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from bounds import equal, share_of
from cases import Arrays, Buffers, Case, Scale, poison
from gguf import GGMLQuantizationType as GGMLType
from harness import main
from matrices import PERIOD, X_PERIOD, on_card, planes_of, product_and_bound, vectors, weight_bytes

from m40llm import reference
from m40llm.fuzz.bounds import (
    add_shares_bound,
    choose_experts_bound,
    gamma,
    gated_sums_bound,
)
from m40llm.kernels.add_shares import add_shares
from m40llm.kernels.choose_experts import choose_experts
from m40llm.kernels.gemv import gemv
from m40llm.kernels.gemv_experts import gemv_experts, gemv_experts_swiglu

Q4_K, Q6_K, Q8_0 = (GGMLType[name] for name in ("Q4_K", "Q6_K", "Q8_0"))
QWEN = ("qwen3-30b-a3b", 128, 8, 2048, 768)  # name, n_experts, n_used, n_embd, n_ff
MIXTRAL = ("mixtral-8x7b", 8, 2, 4096, 14336)
TINY = ("tiny", 5, 2, 256, 256)
N_SETS = 16  # of ids, at least


def drawn_ids(n_experts: int, n_used: int, n_tokens: int) -> Any:
    """int32[sets, n_tokens * n_used]: no expert again before all have been."""
    rng, n_slots = np.random.default_rng(n_tokens), n_tokens * n_used
    n_rounds = -(-N_SETS * n_slots // n_experts)
    drawn = np.concatenate([rng.permutation(n_experts) for _ in range(n_rounds)])
    return drawn[: N_SETS * n_slots].reshape(N_SETS, n_slots).astype(np.int32)


def of_slots(type: GGMLType, x: Any, ids: Any, n_out: int, below: int = 0) -> tuple[Any, Any]:
    """(products in FP64, bounds) [n_slots, n_out], of rows that lie `below` others."""
    y, bound = product_and_bound(type, x)
    at = np.arange(ids.size)[:, None] * len(x) // ids.size % X_PERIOD
    columns = (below + ids[:, None] * n_out + np.arange(n_out)) % PERIOD
    return y[at, columns], bound[at, columns]


def gated(type: GGMLType, x: Any, ids: Any, n_experts: int, n_ff: int) -> tuple[Any, Any]:
    """(silu(gate) * up, its bound) [n_slots, n_ff]"""
    halves = [of_slots(type, x, ids, n_ff, below) for below in (0, n_experts * n_ff)]
    y, error = (np.concatenate(parts, axis=1) for parts in zip(*halves, strict=True))
    expected = reference.swiglu(*np.split(y, 2, axis=1))
    return expected, gated_sums_bound(y, error, expected)


def gate_up_case(type: GGMLType, model: tuple[str, int, int, int, int], n_tokens: int) -> Case:
    name, n_experts, n_used, n_embd, n_ff = model
    n_slots = n_tokens * n_used

    def check(a: Arrays, got: Arrays) -> float:
        return share_of(got["out"], *gated(type, a["x"], a["ids"], n_experts, n_ff))

    return Case(
        name=f"gate_up {type.name} {name}, {n_tokens} tokens",
        shape={"type": type.name, "n_rows": 2 * n_ff, "n_cols": n_embd, "n_slots": n_slots},
        arrays=lambda: {
            **planes_of(type, 2 * n_experts * n_ff, n_embd),
            "x": vectors(n_tokens, n_embd) / np.float32(n_embd**0.5),
            "ids": drawn_ids(n_experts, n_used, n_tokens),
            "out": poison((n_slots, n_ff)),
        },
        launch=lambda b, s: gemv_experts_swiglu(
            on_card(type, n_embd, b), b["x"], b["ids"], b["out"], stream=s
        ),
        outputs=("out",),
        check=check,
        bytes_read=bytes_of(type, 2 * n_ff, n_embd, n_slots, n_experts),
        bytes_written=4 * n_slots * n_ff,
        n_flops=4 * n_slots * n_ff * n_embd,
        stacked=("ids",),
        shared=("quants", "highs", "scales"),
    )


def down_case(type: GGMLType, model: tuple[str, int, int, int, int], n_tokens: int) -> Case:
    name, n_experts, n_used, n_embd, n_ff = model
    n_slots = n_tokens * n_used

    def check(a: Arrays, got: Arrays) -> float:
        return share_of(got["out"], *of_slots(type, a["x"], a["ids"], n_embd))

    return Case(
        name=f"down {type.name} {name}, {n_tokens} tokens",
        shape={"type": type.name, "n_rows": n_embd, "n_cols": n_ff, "n_slots": n_slots},
        arrays=lambda: {
            **planes_of(type, n_experts * n_embd, n_ff),
            "x": vectors(n_slots, n_ff),
            "ids": drawn_ids(n_experts, n_used, n_tokens),
            "out": poison((n_slots, n_embd)),
        },
        launch=lambda b, s: gemv_experts(
            on_card(type, n_ff, b), b["x"], b["ids"], b["out"], stream=s
        ),
        outputs=("out",),
        check=check,
        bytes_read=bytes_of(type, n_embd, n_ff, n_slots, n_experts),
        bytes_written=4 * n_slots * n_embd,
        n_flops=2 * n_slots * n_ff * n_embd,
        stacked=("ids",),
        shared=("quants", "highs", "scales"),
    )


def bytes_of(type: GGMLType, n_rows: int, n_cols: int, n_slots: int, n_experts: int) -> int:
    """Of the experts that n_slots slots choose, each once."""
    return min(n_slots, n_experts) * weight_bytes(type, n_rows, n_cols)


def layer_case(
    types: tuple[GGMLType, GGMLType], model: tuple[str, int, int, int, int], n_tokens: int
) -> Case:
    """Of `types`, that of gate and up, and that of down."""
    (of_gate, of_down), (name, n_experts, n_used, n_embd, n_ff) = types, model
    n_slots = n_tokens * n_used

    def arrays() -> Arrays:
        rng = np.random.default_rng(n_tokens)
        down = planes_of(of_down, n_experts * n_embd, n_ff)
        return {
            "router": rng.standard_normal((n_experts, n_embd), np.float32).view(np.uint32),
            **planes_of(of_gate, 2 * n_experts * n_ff, n_embd),
            **{f"down_{plane}": values for plane, values in down.items()},
            "x": rng.normal(0, n_embd**-0.5, (N_SETS, n_tokens, n_embd)).astype(np.float32),
            "residual": rng.standard_normal((n_tokens, n_embd), np.float32),
            "logits": poison((n_tokens, n_experts)),
            "ids": poison((n_slots,), np.int32),
            "shares": poison((n_slots,)),
            "gated": poison((n_slots, n_ff)),
            "made": poison((n_slots, n_embd)),
        }

    def launch(b: Buffers, stream: Any) -> None:
        router = on_card(GGMLType.F32, n_embd, {"quants": b["router"]})
        gemv(router, b["x"], b["logits"], stream=stream)
        choose_experts(b["logits"], b["ids"], b["shares"], stream=stream)
        w = on_card(of_gate, n_embd, b)
        gemv_experts_swiglu(w, b["x"], b["ids"], b["gated"], stream=stream)
        named = {key.removeprefix("down_"): b[key] for key in b if key.startswith("down_")}
        w = on_card(of_down, n_ff, named)
        gemv_experts(w, b["gated"], b["ids"], b["made"], stream=stream)
        add_shares(b["residual"], b["shares"], b["made"], stream=stream)

    planes = ("quants", "highs", "scales")
    return Case(
        name=f"layer {of_gate.name} {of_down.name} {name}, {n_tokens} tokens",
        shape={"n_embd": n_embd, "n_ff": n_ff, "n_experts": n_experts, "n_slots": n_slots},
        arrays=arrays,
        launch=launch,
        outputs=("logits", "ids", "shares", "gated", "made", "residual"),
        check=lambda a, got: share_of_layer(types, a, got),
        bytes_read=bytes_of(of_gate, 2 * n_ff, n_embd, n_slots, n_experts)
        + bytes_of(of_down, n_embd, n_ff, n_slots, n_experts),
        bytes_written=4 * n_tokens * n_embd,
        n_flops=6 * n_slots * n_ff * n_embd,
        stacked=("x",),
        shared=("router", *planes, *(f"down_{plane}" for plane in planes)),
    )  # fmt: skip


def share_of_layer(types: tuple[GGMLType, GGMLType], a: Arrays, got: Arrays) -> float:
    """The largest error of all five steps, each of what the one before it has made."""
    x, ids, logits, n_ff = a["x"], got["ids"], got["logits"], got["gated"].shape[1]
    router, n_tokens = a["router"].view(np.float32), len(x)
    magnitude = np.abs(x).astype(np.float64) @ np.abs(router).T
    n_experts, n_used = len(router), ids.size // n_tokens
    expected, of_chosen = reference.choose_experts(logits, n_used)
    bound = choose_experts_bound(logits, expected, 1.0, True)
    shares = got["shares"].reshape(n_tokens, n_used)
    to_add = got["shares"], got["made"]
    return max(
        share_of(logits, reference.matmul(router, x), gamma(x.shape[1]) * magnitude),
        equal(ids.reshape(expected.shape), expected),
        share_of(shares, of_chosen, bound),
        share_of(got["gated"], *gated(types[0], x, ids, n_experts, n_ff)),
        share_of(got["made"], *of_slots(types[1], got["gated"], ids, x.shape[1])),
        share_of(
            got["residual"],
            reference.add_shares(a["residual"], *to_add),
            add_shares_bound(a["residual"], *to_add),
        ),
    )


def cases(scale: Scale) -> Iterator[Case]:
    if not scale.card:
        yield layer_case((GGMLType.Q4_0, GGMLType.Q4_0), TINY, 2)
        if not scale.quick:
            yield gate_up_case(Q4_K, TINY, 2)
            yield down_case(Q6_K, TINY, 2)
        return
    yield from (layer_case((Q4_K, Q4_K), QWEN, n_tokens) for n_tokens in (1, 4))
    types, tokens = ((Q4_K,), (1,)) if scale.quick else ((Q4_K, Q6_K, Q8_0), (1, 2, 4))
    for n_tokens in tokens:
        for type in types:
            yield gate_up_case(type, QWEN, n_tokens)
            yield down_case(type, QWEN, n_tokens)
    if not scale.quick:
        yield layer_case((Q4_K, Q6_K), QWEN, 1)
        yield gate_up_case(Q4_K, MIXTRAL, 1)
        yield down_case(Q4_K, MIXTRAL, 1)


if __name__ == "__main__":
    sys.exit(main("gemv_experts", cases, __doc__))
