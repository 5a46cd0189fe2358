"""Soft cap of logits, x = cap * tanh(x / cap), against torch's three operations."""

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from bounds import share_of
from cases import Arrays, Case, Scale
from harness import main
from rivals import Rival, randn

from m40llm import reference
from m40llm.fuzz.bounds import softcap_bound
from m40llm.kernels.softcap import softcap

CAP = 30.0
SMALL = [(2, 343)]
LARGE = [(n_tokens, n_cols) for n_cols in (256000, 4096) for n_tokens in (1, 64)]


def check(a: Arrays, got: Arrays) -> float:
    expected = reference.softcap(a["x"], CAP)
    return share_of(got["x"], expected, softcap_bound(expected))


def case_of(n_tokens: int, n_cols: int) -> Case:
    shape = (n_tokens, n_cols)

    def arrays() -> Arrays:
        rng = np.random.default_rng(n_cols)
        return {"x": 20 * rng.standard_normal(shape, np.float32)}

    def make(torch: Any) -> Any:
        x = randn(torch, *shape)
        return lambda: x.div_(CAP).tanh_().mul_(CAP)

    return Case(
        name=f"softcap {n_tokens}x{n_cols}",
        shape={"n_tokens": n_tokens, "n_cols": n_cols},
        arrays=arrays,
        launch=lambda b, stream: softcap(b["x"], CAP, stream=stream),
        outputs=("x",),
        check=check,
        bytes_read=4 * n_tokens * n_cols,
        bytes_written=4 * n_tokens * n_cols,
        rival=Rival("torch div_, tanh_, mul_", make),
    )


def cases(scale: Scale) -> Iterator[Case]:
    yield from (case_of(*each) for each in scale.pick(SMALL, LARGE, 2))


if __name__ == "__main__":
    sys.exit(main("softcap", cases, __doc__))
