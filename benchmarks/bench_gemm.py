"""Matrix product of many tokens, against cuBLAS in FP32 without TF32 (torch.mm)."""

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from cases import Arrays, Case, Scale, poison
from gguf import GGMLQuantizationType as GGMLType
from harness import main
from matrices import (
    on_card,
    planes_of,
    product_and_bound,
    share_of_repeats,
    vectors,
    weight_bytes,
)
from rivals import Rival, randn

from m40llm.kernels.gemm import MAX_TILES, Workspace, gemm, workspace_floats
from m40llm.kernels.layouts import LAYOUTS

F16, F32, Q4_0, Q4_K, Q8_0 = (GGMLType[n] for n in ("F16", "F32", "Q4_0", "Q4_K", "Q8_0"))
# (n_rows, n_cols) of the matrices of models of 135M to 8B; prompts or batches of so many tokens.
MATRICES = (
    *((4096, 4096), (6144, 4096), (28672, 4096), (4096, 14336), (2048, 2048), (8192, 2048)),
    *((576, 576), (1536, 576), (128256, 2048)),
)
TOKENS = (16, 32, 64, 128, 512, 2048)
SMALL: list[tuple[GGMLType, int, int, int, Any]] = [
    (Q8_0, 19, 70, 64, np.float32),
    (F16, 19, 70, 64, np.float32),
]
LARGE: list[tuple[GGMLType, int, int, int, Any]] = [
    *((type, 4096, 4096, 4096, np.float32) for type in (F16, Q4_K, F32)),
    (F16, 512, 4096, 4096, np.float32),
    (F16, 1000, 1000, 1000, np.float32),
    (Q4_K, 64, 14336, 4096, np.float32),
    (F16, 16, 4096, 4096, np.float32),
    (F32, 1000, 1000, 1000, np.float32),
    (F16, 4096, 4096, 4096, np.float16),
    *((type, 4096, 4096, 4096, np.float32) for type in LAYOUTS if type != Q4_K),
    *((F16, m, *matrix, np.float32) for matrix in MATRICES for m in TOKENS),
    *(
        (type, m, *matrix, np.float32)
        for matrix in MATRICES for m in TOKENS for type in (Q8_0, Q4_0, Q4_K)
        if matrix[1] % 256 == 0 or type != Q4_K
    ),
]  # fmt: skip
N_SUMS = workspace_floats(132)  # of a workspace: enough for a big card


def case_of(
    scale: Scale, type: GGMLType, n_tokens: int, n_rows: int, n_cols: int, dtype: Any
) -> Case:
    x_type = np.dtype(dtype).name

    def arrays() -> Arrays:
        x, out = vectors(n_tokens, n_cols, dtype), poison((n_tokens, n_rows))
        shared = {
            "sums": poison((N_SUMS if scale.card else 1 << 18,)),
            "arrived": np.zeros(MAX_TILES, np.int32),
        }
        return {**planes_of(type, n_rows, n_cols), "x": x, "out": out, **shared}

    def torch_mm(name: str, dtype: str) -> Rival:
        def make(torch: Any) -> Any:
            x, w, out = (
                randn(torch, *shape, dtype=dtype)
                for shape in ((n_tokens, n_cols), (n_rows, n_cols), (n_tokens, n_rows))
            )
            return lambda: torch.mm(x, w.T, out=out)

        return Rival(f"torch.mm {dtype} ({name})", make)

    half = torch_mm("cuBLAS, tensor cores", "float16")
    return Case(
        name=f"{type.name} {n_tokens}x{n_rows}x{n_cols}, {x_type} x",
        shape={
            "type": type.name, "n_tokens": n_tokens, "n_rows": n_rows, "n_cols": n_cols,
            "x": x_type,
        },
        arrays=arrays,
        launch=lambda b, stream: gemm(
            on_card(type, n_cols, b), b["x"], b["out"], stream=stream,
            workspace=Workspace(b["sums"], b["arrived"]),
        ),
        outputs=("out",),
        shared=("sums", "arrived"),
        check=lambda a, got: share_of_repeats(got["out"], *product_and_bound(type, a["x"])),
        bytes_read=weight_bytes(type, n_rows, n_cols)
        + np.dtype(dtype).itemsize * n_tokens * n_cols,
        bytes_written=4 * n_tokens * n_rows,
        n_flops=2 * n_tokens * n_rows * n_cols,
        rival=torch_mm("cuBLAS, no TF32", "float32"),
        others=(half,) if type == F16 else (),
    )  # fmt: skip


def cases(scale: Scale) -> Iterator[Case]:
    yield from (case_of(scale, *each) for each in scale.pick(SMALL, LARGE, 7))


if __name__ == "__main__":
    sys.exit(main("gemm", cases, __doc__))
