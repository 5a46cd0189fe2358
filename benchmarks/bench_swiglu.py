"""SwiGLU and GeGLU gates, against torch's two operations."""

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from bounds import share_of
from cases import Arrays, Case, Scale, poison
from harness import main
from rivals import Rival, randn

from m40llm import reference
from m40llm.fuzz.bounds import gate_bound
from m40llm.kernels.swiglu import geglu, swiglu

OPS = {"swiglu": (swiglu, reference.swiglu), "geglu": (geglu, reference.geglu)}
SMALL = [("swiglu", 2, 343), ("geglu", 2, 343)]
LARGE = [
    *((form, n_tokens, 14336) for form in OPS for n_tokens in (1, 512)),
    *(("swiglu", n_tokens, n_ff) for n_tokens in (1, 512) for n_ff in (1536, 8192)),
    ("swiglu", 8, 14336),
]


def check(form: str, a: Arrays, got: Arrays) -> float:
    expected = OPS[form][1](a["gate"], a["up"])
    bound = gate_bound(form, a["gate"], a["up"], expected)
    return share_of(got["out"], expected, bound)


def case_of(form: str, n_tokens: int, n_ff: int) -> Case:
    shape = (n_tokens, n_ff)

    def arrays() -> Arrays:
        rng = np.random.default_rng(n_ff)
        gate, up = (3 * rng.standard_normal(shape, np.float32) for _ in range(2))
        return {"gate": gate, "up": up, "out": poison(shape)}

    def make(torch: Any) -> Any:
        gate, up, out = (randn(torch, *shape) for _ in range(3))
        functional = torch.nn.functional
        if form == "swiglu":
            return lambda: torch.mul(functional.silu(gate), up, out=out)
        return lambda: torch.mul(functional.gelu(gate, approximate="tanh"), up, out=out)

    return Case(
        name=f"{form} {n_tokens}x{n_ff}",
        shape={"form": form, "n_tokens": n_tokens, "n_ff": n_ff},
        arrays=arrays,
        launch=lambda b, stream: OPS[form][0](b["gate"], b["up"], b["out"], stream=stream),
        outputs=("out",),
        check=lambda a, got: check(form, a, got),
        bytes_read=8 * n_tokens * n_ff,
        bytes_written=4 * n_tokens * n_ff,
        rival=Rival("torch silu (gelu), then mul", make),
    )


def cases(scale: Scale) -> Iterator[Case]:
    yield from (case_of(*each) for each in scale.pick(SMALL, LARGE, 4))


if __name__ == "__main__":
    sys.exit(main("swiglu", cases, __doc__))
