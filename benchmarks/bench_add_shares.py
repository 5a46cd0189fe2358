"""What a token's experts made, added, x[t] += sum of shares * y, against torch's baddbmm_."""

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from bounds import share_of
from cases import Arrays, Case, Scale
from harness import main
from rivals import Rival, randn

from m40llm import reference
from m40llm.fuzz.bounds import add_shares_bound
from m40llm.kernels.add_shares import add_shares

SMALL = [(2, 3, 343)]
LARGE = [(1, 8, 2048), (4, 8, 2048), (16, 8, 2048), (1, 2, 4096)]


def case_of(n_tokens: int, n_used: int, n_cols: int) -> Case:
    n_slots = n_tokens * n_used

    def arrays() -> Arrays:
        rng = np.random.default_rng(n_cols)
        return {
            "x": rng.standard_normal((n_tokens, n_cols), np.float32),
            "shares": rng.uniform(0, 1, n_slots).astype(np.float32),
            "y": rng.standard_normal((n_slots, n_cols), np.float32),
        }

    def check(a: Arrays, got: Arrays) -> float:
        args = a["x"], a["shares"], a["y"]
        return share_of(got["x"], reference.add_shares(*args), add_shares_bound(*args))

    def make(torch: Any) -> Any:
        x = randn(torch, n_tokens, 1, n_cols)
        shares, y = randn(torch, n_tokens, 1, n_used), randn(torch, n_tokens, n_used, n_cols)
        return lambda: x.baddbmm_(shares, y)

    return Case(
        name=f"{n_tokens} tokens, {n_used} of {n_cols}",
        shape={"n_tokens": n_tokens, "n_used": n_used, "n_cols": n_cols},
        arrays=arrays,
        launch=lambda b, s: add_shares(b["x"], b["shares"], b["y"], stream=s),
        outputs=("x",),
        check=check,
        bytes_read=4 * (n_tokens + n_slots) * n_cols + 4 * n_slots,
        bytes_written=4 * n_tokens * n_cols,
        rival=Rival("torch baddbmm_", make),
    )


def cases(scale: Scale) -> Iterator[Case]:
    yield from (case_of(*shape) for shape in scale.pick(SMALL, LARGE, 2))


if __name__ == "__main__":
    sys.exit(main("add_shares", cases, __doc__))
