"""Top-k of rows of logits, against torch.topk."""

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from bounds import equal
from cases import Arrays, Case, Scale, poison
from harness import main
from rivals import Rival, randn

from m40llm import reference
from m40llm.kernels.top_k import top_k

SMALL = [(2, 2000, 8)]
LARGE = [(n_rows, n, 40) for n_rows in (1, 8) for n in (128256, 32000)] + [
    (1, 128256, 1), (1, 128256, 512), (64, 128256, 40),
]  # fmt: skip


def check(a: Arrays, got: Arrays) -> float:
    values, ids = reference.top_k(a["logits"], got["ids"].shape[1])
    return max(equal(got["ids"], ids), equal(got["values"], values))


def case_of(n_rows: int, n: int, k: int) -> Case:
    def arrays() -> Arrays:
        logits = np.random.default_rng(n).standard_normal((n_rows, n), np.float32)
        ids = poison((n_rows, k), np.int32)
        return {"logits": logits, "values": poison((n_rows, k)), "ids": ids}

    def make(torch: Any) -> Any:
        logits = randn(torch, n_rows, n)
        return lambda: torch.topk(logits, k, dim=1)

    return Case(
        name=f"{n_rows}x{n}, k {k}",
        shape={"n_rows": n_rows, "n": n, "k": k},
        arrays=arrays,
        launch=lambda b, stream: top_k(b["logits"], b["values"], b["ids"], stream=stream),
        outputs=("values", "ids"),
        check=check,
        bytes_read=4 * n_rows * n,
        bytes_written=8 * n_rows * k,
        rival=Rival("torch.topk", make),
    )


def cases(scale: Scale) -> Iterator[Case]:
    yield from (case_of(*shape) for shape in scale.pick(SMALL, LARGE, 4))


if __name__ == "__main__":
    sys.exit(main("top_k", cases, __doc__))
