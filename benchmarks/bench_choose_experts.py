"""The router's choice of experts, against torch's softmax and topk (two kernels or more)."""

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from bounds import equal, share_of
from cases import Arrays, Case, Scale, poison
from harness import main
from rivals import Rival, randn

from m40llm import reference
from m40llm.fuzz.bounds import choose_experts_bound
from m40llm.kernels.choose_experts import choose_experts

SMALL = [(2, 40, 3)]
LARGE = [(1, 128, 8), (4, 128, 8), (1, 8, 2), (512, 128, 8), (1, 512, 10)]


def check(a: Arrays, got: Arrays) -> float:
    logits, n_tokens = a["logits"], len(a["logits"])
    ids, shares = (got[name].reshape(n_tokens, -1) for name in ("ids", "shares"))
    expected, of_chosen = reference.choose_experts(logits, ids.shape[1])
    bound = choose_experts_bound(logits, expected, 1.0, True)
    return max(equal(ids, expected), share_of(shares, of_chosen, bound))


def case_of(n_tokens: int, n_experts: int, n_used: int) -> Case:
    n_slots = n_tokens * n_used

    def arrays() -> Arrays:
        logits = np.random.default_rng(n_experts).standard_normal((n_tokens, n_experts), np.float32)
        return {"logits": logits, "ids": poison((n_slots,), np.int32), "shares": poison((n_slots,))}

    def make(torch: Any) -> Any:
        logits = randn(torch, n_tokens, n_experts)
        return lambda: torch.softmax(torch.topk(logits, n_used, dim=1).values, dim=1)

    return Case(
        name=f"{n_tokens} tokens, {n_used} of {n_experts}",
        shape={"n_tokens": n_tokens, "n_experts": n_experts, "n_used": n_used},
        arrays=arrays,
        launch=lambda b, s: choose_experts(b["logits"], b["ids"], b["shares"], stream=s),
        outputs=("ids", "shares"),
        check=check,
        bytes_read=4 * n_tokens * n_experts,
        bytes_written=8 * n_slots,
        rival=Rival("torch topk, softmax", make),
    )


def cases(scale: Scale) -> Iterator[Case]:
    yield from (case_of(*shape) for shape in scale.pick(SMALL, LARGE, 2))


if __name__ == "__main__":
    sys.exit(main("choose_experts", cases, __doc__))
