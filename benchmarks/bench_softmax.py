"""Softmax of rows, against torch.softmax."""

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from bounds import share_of
from cases import Arrays, Case, Scale, poison
from harness import main
from rivals import Rival, randn

from m40llm import reference
from m40llm.fuzz.bounds import softmax_bound
from m40llm.kernels.softmax import N_THREADS, softmax

SMALL = [(2, 257)]
LARGE = [(1, 128256), (8, 128256), (1, 32000), (8, 32000), (4096, 4096), (64, 128256)]


def check(a: Arrays, got: Arrays) -> float:
    expected = reference.softmax(a["x"])
    return share_of(got["out"], expected, softmax_bound(a["x"], expected, N_THREADS))


def case_of(n_rows: int, n: int) -> Case:
    def arrays() -> Arrays:
        rng = np.random.default_rng(n)
        return {"x": 4 * rng.standard_normal((n_rows, n), np.float32), "out": poison((n_rows, n))}

    def make(torch: Any) -> Any:
        x, out = randn(torch, n_rows, n), randn(torch, n_rows, n)
        return lambda: torch.softmax(x, dim=1, out=out)

    return Case(
        name=f"{n_rows}x{n}",
        shape={"n_rows": n_rows, "n": n},
        arrays=arrays,
        launch=lambda b, stream: softmax(b["x"], b["out"], stream=stream),
        outputs=("out",),
        check=check,
        bytes_read=4 * n_rows * n,
        bytes_written=4 * n_rows * n,
        rival=Rival("torch.softmax", make),
    )


def cases(scale: Scale) -> Iterator[Case]:
    yield from (case_of(*shape) for shape in scale.pick(SMALL, LARGE, 4))


if __name__ == "__main__":
    sys.exit(main("softmax", cases, __doc__))
