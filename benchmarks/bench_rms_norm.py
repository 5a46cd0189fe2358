"""RMSNorm in its three forms, against torch.nn.functional.rms_norm."""

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from bounds import equal, share_of
from cases import Arrays, Case, Scale, poison
from harness import main
from rivals import Rival, randn

from m40llm import reference
from m40llm.fuzz.bounds import rms_norm_bound
from m40llm.kernels.rms_norm import N_THREADS, add_rms_norm, rms_norm, rms_norm_heads

EPS = 1e-5
SMALL = [("rms_norm", (2, 257)), ("add_rms_norm", (2, 257)), ("rms_norm_heads", (2, 3, 64))]
LARGE: list[tuple[str, tuple[int, ...]]] = [
    *((form, (1, n_embd)) for form in ("rms_norm", "add_rms_norm") for n_embd in (2048, 4096)),
    *((form, (512, 4096)) for form in ("rms_norm", "add_rms_norm")),
    ("rms_norm_heads", (512, 32, 128)),
    *(("rms_norm", shape) for shape in ((1, 576), (8, 4096), (512, 2048), (4096, 4096))),
    ("add_rms_norm", (4096, 4096)),
]


def drawn(form: str, shape: tuple[int, ...]) -> Arrays:
    rng = np.random.default_rng(shape[0])
    weight = rng.normal(1, 0.5, shape[-1]).astype(np.float32)
    x = rng.standard_normal(shape, np.float32)
    made = {"x": x, "weight": weight, "out": poison(shape)}
    if form == "add_rms_norm":
        made["residual"] = rng.standard_normal(shape, np.float32)
    return made


def launch(form: str, b: Any, stream: Any) -> None:
    if form == "add_rms_norm":
        add_rms_norm(b["x"], b["residual"], b["weight"], EPS, b["out"], stream=stream)
    else:
        op = rms_norm if form == "rms_norm" else rms_norm_heads
        op(b["x"], b["weight"], EPS, b["out"], stream=stream)


def check(a: Arrays, got: Arrays) -> float:
    """Half the roundings of the sum, as the root halves them; six more, each of one rounding."""
    x = a["x"] + a["residual"] if "residual" in a else a["x"]
    expected = reference.rms_norm(x, a["weight"], float(np.float32(EPS)))
    n_threads = N_THREADS if x.ndim == 2 else 32
    bound = rms_norm_bound(x.shape[-1], n_threads) * np.abs(expected)
    return max(share_of(got["out"], expected, bound), equal(got["x"], x))


def case_of(form: str, shape: tuple[int, ...]) -> Case:
    n = int(np.prod(shape))
    n_inputs = 2 if form == "add_rms_norm" else 1

    def make(torch: Any) -> Any:
        x, residual, weight = (randn(torch, *s) for s in (shape, shape, shape[-1:]))
        norm = torch.nn.functional.rms_norm
        if form == "add_rms_norm":
            return lambda: norm(x.add_(residual), shape[-1:], weight, EPS)
        return lambda: norm(x, shape[-1:], weight, EPS)

    return Case(
        name=f"{form} {'x'.join(map(str, shape))}",
        shape={"form": form, "shape": shape},
        arrays=lambda: drawn(form, shape),
        launch=lambda b, stream: launch(form, b, stream),
        outputs=("out", "x"),
        check=check,
        bytes_read=4 * (n_inputs * n + shape[-1]),
        bytes_written=4 * n_inputs * n,
        rival=Rival("torch rms_norm" + (" after add_" if n_inputs == 2 else ""), make),
    )


def cases(scale: Scale) -> Iterator[Case]:
    yield from (case_of(*each) for each in scale.pick(SMALL, LARGE, 7))


if __name__ == "__main__":
    sys.exit(main("rms_norm", cases, __doc__))
