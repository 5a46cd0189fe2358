"""The bias after a product of cuBLAS, in place, against torch's add_."""

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from bounds import equal
from cases import Arrays, Case, Scale
from harness import main
from rivals import Rival, randn

from m40llm.kernels.add_bias import add_bias

SMALL = [(2, 257)]
LARGE = [(512, 4096), (1, 4096), (4096, 4096), (16, 2048)]


def case_of(n_tokens: int, n_rows: int) -> Case:
    def arrays() -> Arrays:
        rng = np.random.default_rng(n_rows)
        bias = rng.standard_normal(n_rows, np.float32)
        return {"bias": bias, "out": rng.standard_normal((n_tokens, n_rows), np.float32)}

    def make(torch: Any) -> Any:
        bias, out = randn(torch, n_rows), randn(torch, n_tokens, n_rows)
        return lambda: out.add_(bias)

    return Case(
        name=f"{n_tokens}x{n_rows}",
        shape={"n_tokens": n_tokens, "n_rows": n_rows},
        arrays=arrays,
        launch=lambda b, stream: add_bias(b["bias"], b["out"], stream=stream),
        outputs=("out",),
        check=lambda a, got: equal(got["out"], a["out"] + a["bias"]),
        bytes_read=4 * (n_tokens + 1) * n_rows,
        bytes_written=4 * n_tokens * n_rows,
        rival=Rival("torch add_", make),
    )


def cases(scale: Scale) -> Iterator[Case]:
    yield from (case_of(*shape) for shape in scale.pick(SMALL, LARGE, 2))


if __name__ == "__main__":
    sys.exit(main("add_bias", cases, __doc__))
