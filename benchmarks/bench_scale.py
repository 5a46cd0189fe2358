"""Multipliers of activations, x *= factor and x += factor * y, against torch's."""

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from bounds import share_of
from cases import Arrays, Case, Scale
from harness import main
from rivals import Rival, randn

from m40llm import reference
from m40llm.fuzz.bounds import add_scaled_bound, scale_bound
from m40llm.kernels.scale import add_scaled, scale

FACTOR = 0.25
SMALL = [("scale", 2, 343), ("add_scaled", 2, 343)]
LARGE = [(form, n_tokens, 4096) for form in ("scale", "add_scaled") for n_tokens in (1, 512, 4096)]


def launch(form: str, b: Any, stream: Any) -> None:
    if form == "scale":
        scale(b["x"], FACTOR, stream=stream)
    else:
        add_scaled(b["x"], b["y"], FACTOR, stream=stream)


def check(form: str, a: Arrays, got: Arrays) -> float:
    if form == "scale":
        return share_of(got["x"], reference.scale(a["x"], FACTOR), scale_bound(a["x"], FACTOR))
    expected = reference.add_scaled(a["x"], a["y"], FACTOR)
    return share_of(got["x"], expected, add_scaled_bound(a["x"], a["y"], FACTOR))


def case_of(form: str, n_tokens: int, n_cols: int) -> Case:
    shape = (n_tokens, n_cols)
    names = ("x",) if form == "scale" else ("x", "y")

    def arrays() -> Arrays:
        rng = np.random.default_rng(n_cols)
        return {name: rng.standard_normal(shape, np.float32) for name in names}

    def make(torch: Any) -> Any:
        x, y = (randn(torch, *shape) for _ in range(2))
        if form == "scale":
            return lambda: x.mul_(FACTOR)
        return lambda: x.add_(y, alpha=FACTOR)

    return Case(
        name=f"{form} {n_tokens}x{n_cols}",
        shape={"form": form, "n_tokens": n_tokens, "n_cols": n_cols},
        arrays=arrays,
        launch=lambda b, stream: launch(form, b, stream),
        outputs=("x",),
        check=lambda a, got: check(form, a, got),
        bytes_read=4 * len(names) * n_tokens * n_cols,
        bytes_written=4 * n_tokens * n_cols,
        rival=Rival("torch mul_ (add_)", make),
    )


def cases(scale: Scale) -> Iterator[Case]:
    yield from (case_of(*each) for each in scale.pick(SMALL, LARGE, 2))


if __name__ == "__main__":
    sys.exit(main("scale", cases, __doc__))
