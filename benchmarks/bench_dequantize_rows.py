"""Rows of a matrix to FP32, every weight type; for F16 and F32 against torch's copy_."""

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from bounds import equal
from cases import Arrays, Case, Scale, poison
from gguf import GGMLQuantizationType as GGMLType
from harness import main
from matrices import PERIOD, on_card, planes_of, repeated, weight_bytes
from rivals import Rival, randn

from m40llm.kernels.dequantize_rows import dequantize_rows
from m40llm.kernels.layouts import DENSE, LAYOUTS

FIRST = [GGMLType[name] for name in ("Q4_K", "F16", "Q4_0", "Q6_K")]
TYPES = [*FIRST, *(type for type in (*DENSE, *LAYOUTS) if type not in FIRST)]


def case_of(type: GGMLType, n_rows: int, n_cols: int) -> Case:
    def arrays() -> Arrays:
        return {**planes_of(type, n_rows, n_cols), "out": poison((n_rows, n_cols))}

    def check(a: Arrays, got: Arrays) -> float:
        weights = repeated(type, n_cols)[1].astype(np.float32)  # they were float32: exact
        return equal(got["out"], weights[np.arange(n_rows) % PERIOD])

    def make(torch: Any) -> Any:
        w = randn(torch, n_rows, n_cols, dtype="float16" if type == GGMLType.F16 else "float32")
        out = randn(torch, n_rows, n_cols)
        return lambda: out.copy_(w)

    return Case(
        name=f"{type.name} {n_rows}x{n_cols}",
        shape={"type": type.name, "n_rows": n_rows, "n_cols": n_cols},
        arrays=arrays,
        launch=lambda b, stream: dequantize_rows(
            on_card(type, n_cols, b), 0, b["out"], stream=stream
        ),
        outputs=("out",),
        check=check,
        bytes_read=weight_bytes(type, n_rows, n_cols),
        bytes_written=4 * n_rows * n_cols,
        rival=Rival("torch copy_", make) if type in DENSE else None,
    )


def cases(scale: Scale) -> Iterator[Case]:
    for type in scale.pick(TYPES, TYPES, 4):
        yield case_of(type, *((4096, 4096) if scale.card else (5, 256)))


if __name__ == "__main__":
    sys.exit(main("dequantize_rows", cases, __doc__))
