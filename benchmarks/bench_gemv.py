"""Matrix x vector for 1 to 8 tokens: every weight type, matrices of 135M, 1B and 8B models.

The rival of F32 is torch (cuBLAS) in FP32, that of all other types torch in FP16, which reads the
same bytes as F16: a quantised matrix is rivalled by what its user would run without a kernel.
"""

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from cases import Arrays, Case, Scale, poison
from gguf import GGMLQuantizationType as GGMLType
from harness import main
from matrices import (
    MODELS,
    PERIOD,
    on_card,
    planes_of,
    product_and_bound,
    share_of_repeats,
    vectors,
    weight_bytes,
)
from rivals import Rival, randn

from m40llm import reference
from m40llm.fuzz.bounds import gamma
from m40llm.gguf.blocks import FORMATS
from m40llm.kernels.gemv import gemv, gemv_swiglu
from m40llm.kernels.layouts import DENSE, LAYOUTS

FIRST = [GGMLType[name] for name in ("Q4_K", "F16", "Q4_0", "Q8_0", "Q6_K")]
TYPES = [*FIRST, *(type for type in (*DENSE, *LAYOUTS) if type not in FIRST)]
QUICK_SHAPES = ("8B attn_q", "8B ffn_up", "1B output")


def has_shape(type: GGMLType, n_cols: int) -> bool:
    """Some types come in blocks of 256 columns: 576 is none."""
    return n_cols % FORMATS[type].n_weights == 0


def case_of(type: GGMLType, model: str, shape: tuple[int, int], n_tokens: int) -> Case:
    n_rows, n_cols = shape

    def arrays() -> Arrays:
        x, out = vectors(n_tokens, n_cols), poison((n_tokens, n_rows))
        return {**planes_of(type, n_rows, n_cols), "x": x, "out": out}

    def check(a: Arrays, got: Arrays) -> float:
        return share_of_repeats(got["out"], *product_and_bound(type, a["x"]))

    return Case(
        name=f"{type.name} {n_rows}x{n_cols} batch {n_tokens}, {model}",
        shape={"type": type.name, "n_rows": n_rows, "n_cols": n_cols, "n_tokens": n_tokens},
        arrays=arrays,
        launch=lambda b, stream: gemv(on_card(type, n_cols, b), b["x"], b["out"], stream=stream),
        outputs=("out",),
        check=check,
        bytes_read=weight_bytes(type, n_rows, n_cols) + 4 * n_tokens * n_cols,
        bytes_written=4 * n_tokens * n_rows,
        n_flops=2 * n_tokens * n_rows * n_cols,
        rival=rival_of(type, shape, n_tokens),
    )


def rival_of(type: GGMLType, shape: tuple[int, int], n_tokens: int) -> Rival:
    dtype = "float32" if type == GGMLType.F32 else "float16"

    def make(torch: Any) -> Any:
        w, x = randn(torch, *shape, dtype=dtype), randn(torch, shape[1], n_tokens, dtype=dtype)
        out = randn(torch, shape[0], n_tokens, dtype=dtype)
        if n_tokens == 1:
            return lambda: torch.mv(w, x[:, 0], out=out[:, 0])
        return lambda: torch.mm(w, x, out=out)

    return Rival(f"torch.{'mv' if n_tokens == 1 else 'mm'} {dtype}", make)


def swiglu_case(type: GGMLType, n_ff: int, n_cols: int) -> Case:
    """Gate above up, one launch for both and the gate."""

    def check(a: Arrays, got: Arrays) -> float:
        """silu's slope is at most 1.1, and |silu(g)| at most |g|: errors of gate and up add up."""
        y, bound = product_and_bound(type, a["x"])
        at, below = np.arange(n_ff) % PERIOD, (n_ff + np.arange(n_ff)) % PERIOD
        gate, up, of_gate, of_up = y[:, at], y[:, below], bound[:, at], bound[:, below]
        expected = reference.swiglu(gate, up)
        error = 1.1 * of_gate * (np.abs(up) + of_up) + np.abs(gate) * of_up
        share = np.abs(got["out"] - expected) / (error + gamma(8) * np.abs(expected))
        return float(np.where(np.isnan(share), np.inf, share).max())

    name = f"swiglu {type.name} {n_ff}x{n_cols} batch 1"
    return Case(
        name=name,
        shape={"type": type.name, "n_ff": n_ff, "n_cols": n_cols, "n_tokens": 1},
        arrays=lambda: {
            **planes_of(type, 2 * n_ff, n_cols), "x": vectors(1, n_cols), "out": poison((1, n_ff)),
        },
        launch=lambda b, stream: gemv_swiglu(
            on_card(type, n_cols, b), b["x"], b["out"], stream=stream
        ),
        outputs=("out",),
        check=check,
        bytes_read=weight_bytes(type, 2 * n_ff, n_cols) + 4 * n_cols,
        bytes_written=4 * n_ff,
        n_flops=4 * n_ff * n_cols,
    )  # fmt: skip


def cases(scale: Scale) -> Iterator[Case]:
    if not scale.card:
        small = scale.pick([GGMLType.Q4_0, *(t for t in TYPES if t != GGMLType.Q4_0)], [], 0)
        yield from (case_of(type, "tiny", (37, 256), 1) for type in small)
        if not scale.quick:
            yield swiglu_case(GGMLType.Q4_0, 37, 256)
        return
    shapes = {name: MODELS[name] for name in QUICK_SHAPES} if scale.quick else MODELS
    for n_tokens in (1, 4) if scale.quick else (1, 2, 4, 8):
        for type in FIRST if scale.quick else TYPES:
            for model, shape in shapes.items():
                if has_shape(type, shape[1]):
                    yield case_of(type, model, shape, n_tokens)
        if n_tokens == 1:
            yield from (swiglu_case(type, 14336, 4096) for type in FIRST[:3])


if __name__ == "__main__":
    sys.exit(main("gemv", cases, __doc__))
