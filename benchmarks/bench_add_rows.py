"""Rows added where they belong, x[rows] += shares * y, as experts give theirs, against torch's."""

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from bounds import share_of
from cases import Arrays, Case, Scale
from harness import main
from rivals import Rival, randn

from m40llm import reference
from m40llm.fuzz.bounds import add_rows_bound
from m40llm.kernels.add_rows import add_rows

SMALL = [(3, 343)]
LARGE = [(n, 2048) for n in (1, 64, 512)]


def case_of(n: int, n_cols: int) -> Case:
    def arrays() -> Arrays:
        rng = np.random.default_rng(n_cols)
        return {
            "x": rng.standard_normal((2 * n, n_cols), np.float32),
            "rows": rng.permutation(2 * n)[:n].astype(np.int32),
            "shares": rng.uniform(0, 1, n).astype(np.float32),
            "y": rng.standard_normal((n, n_cols), np.float32),
        }

    def check(a: Arrays, got: Arrays) -> float:
        args = a["x"], a["rows"], a["shares"], a["y"]
        return share_of(got["x"], reference.add_rows(*args), add_rows_bound(*args))

    def make(torch: Any) -> Any:
        x, y = randn(torch, 2 * n, n_cols), randn(torch, n, n_cols)
        rows = torch.randperm(2 * n, device=x.device)[:n]
        shares = randn(torch, n, 1)
        return lambda: x.index_add_(0, rows, y * shares)

    return Case(
        name=f"add_rows {n}x{n_cols}",
        shape={"n": n, "n_cols": n_cols},
        arrays=arrays,
        launch=lambda b, s: add_rows(b["x"], b["rows"], b["shares"], b["y"], stream=s),
        outputs=("x",),
        check=check,
        bytes_read=8 * n * n_cols + 8 * n,
        bytes_written=4 * n * n_cols,
        rival=Rival("torch index_add_", make),
    )


def cases(scale: Scale) -> Iterator[Case]:
    yield from (case_of(*each) for each in scale.pick(SMALL, LARGE, 2))


if __name__ == "__main__":
    sys.exit(main("add_rows", cases, __doc__))
