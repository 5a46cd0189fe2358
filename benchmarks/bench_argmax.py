"""Argmax of rows of logits, against torch.argmax."""

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from bounds import equal
from cases import Arrays, Case, Scale, poison
from harness import main
from rivals import Rival, randn

from m40llm import reference
from m40llm.kernels.argmax import argmax

SMALL = [(2, 2000)]
LARGE = [(n_rows, n) for n_rows in (1, 8) for n in (128256, 32000)] + [(64, 128256)]


def case_of(n_rows: int, n: int) -> Case:
    def arrays() -> Arrays:
        logits = np.random.default_rng(n).standard_normal((n_rows, n), np.float32)
        return {"logits": logits, "out": poison((n_rows,), np.int32)}

    def make(torch: Any) -> Any:
        logits = randn(torch, n_rows, n)
        return lambda: torch.argmax(logits, dim=1)

    return Case(
        name=f"{n_rows}x{n}",
        shape={"n_rows": n_rows, "n": n},
        arrays=arrays,
        launch=lambda b, stream: argmax(b["logits"], b["out"], stream=stream),
        outputs=("out",),
        check=lambda a, got: equal(got["out"], reference.argmax(a["logits"])),
        bytes_read=4 * n_rows * n,
        bytes_written=4 * n_rows,
        rival=Rival("torch.argmax", make),
    )


def cases(scale: Scale) -> Iterator[Case]:
    yield from (case_of(*shape) for shape in scale.pick(SMALL, LARGE, 4))


if __name__ == "__main__":
    sys.exit(main("argmax", cases, __doc__))
