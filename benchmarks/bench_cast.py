"""Cast between FP32 and FP16, against torch's copy_."""

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from bounds import equal
from cases import Arrays, Case, Scale, poison
from harness import main
from rivals import Rival, randn

from m40llm import reference
from m40llm.kernels.cast import cast

FP32, FP16 = np.dtype(np.float32), np.dtype(np.float16)
SMALL: list[tuple[int, np.dtype[Any]]] = [(1027, FP16), (1027, FP32)]
LARGE: list[tuple[int, np.dtype[Any]]] = [
    (n, to) for n in (2**26, 512 * 8192, 4096) for to in (FP16, FP32)
]


def case_of(n: int, to: np.dtype[Any]) -> Case:
    given = FP32 if to == FP16 else FP16

    def arrays() -> Arrays:
        x = np.random.default_rng(n).standard_normal(n).astype(given)
        return {"x": x, "out": poison((n,), to)}

    def make(torch: Any) -> Any:
        x, out = randn(torch, n, dtype=given.name), randn(torch, n, dtype=to.name)
        return lambda: out.copy_(x)

    return Case(
        name=f"{given.name} to {to.name} {n}",
        shape={"n": n, "to": to.name},
        arrays=arrays,
        launch=lambda b, stream: cast(b["x"], b["out"], stream=stream),
        outputs=("out",),
        check=lambda a, got: equal(got["out"], reference.cast(a["x"])),
        bytes_read=n * given.itemsize,
        bytes_written=n * to.itemsize,
        rival=Rival("torch copy_", make),
    )


def cases(scale: Scale) -> Iterator[Case]:
    yield from (case_of(*shape) for shape in scale.pick(SMALL, LARGE, 4))


if __name__ == "__main__":
    sys.exit(main("cast", cases, __doc__))
