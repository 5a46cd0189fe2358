"""Which experts each token gets, and how much of each: the router's largest logits.

ids[t, k]     the expert of the k-th largest logit of token t; of equal ones (0 and -0 are equal)
              the lower id first; NaN comes after -inf
shares[t, k]  scale * exp(logit - largest) / the sum of that over the chosen, or over all experts
              where not is_normalised

logits   float32[n_tokens, n_experts], 1 <= n_experts <= 4,194,304
ids      int32[n_tokens * n_used], shares float32[n_tokens * n_used]: slot t * n_used + k; no alias
sums     FP32: of the chosen in their order; of all by lanes, then pairwise
grid     one warp a token: the few numbers stay in one SM, whose L1 answers the later rounds
bytes    4 * n_tokens * (n_experts + 2 * n_used)   (bound by latency: n_used rounds of a warp)
GM200    at most 40 registers
"""

import math
from functools import cache
from typing import Any, Final

import numpy as np
from numba import cuda, float32, int32, int64

from m40llm.errors import KernelContractError
from m40llm.kernels.contract import Kernel, Launcher, check_array
from m40llm.kernels.order import MAX_VOCAB_SIZE, id_of, key_of, logit_of
from m40llm.kernels.reduce import WARP_SIZE, warp_max, warp_sum

MAX_REGISTERS: Final = 40
_ABOVE_ALL: Final = (1 << 63) - 1  # no key is as large


@cuda.jit(device=True)
def _best_below(logits: Any, bound: Any) -> Any:
    """The largest key below `bound` of this lane's experts; -1 if it has none."""
    best = int64(-1)
    for expert in range(cuda.threadIdx.x, logits.size, WARP_SIZE):
        key = key_of(logits[expert], expert)
        if key < bound:
            best = max(best, key)
    return best


@cuda.jit(device=True)
def _sum_over_all(logits: Any, largest: Any) -> Any:
    """Of exp(logit - largest); each lane gets it."""
    total = float32(0.0)
    for expert in range(cuda.threadIdx.x, logits.size, WARP_SIZE):
        total += math.exp(logits[expert] - largest)
    return warp_sum(total)


@cache
def _compile(is_normalised: bool) -> Kernel:
    def choose_experts_kernel(logits: Any, n_used: Any, scale: Any, ids: Any, shares: Any) -> None:
        row, lane = logits[cuda.blockIdx.x], cuda.threadIdx.x
        first = int64(cuda.blockIdx.x) * n_used
        best = _best_below(row, int64(_ABOVE_ALL))
        largest = logit_of(warp_max(best))
        total = float32(0.0)
        for k in range(n_used):
            chosen = warp_max(best)
            if best == chosen:  # in one lane: keys are never equal
                best = _best_below(row, chosen)
            weight = math.exp(logit_of(chosen) - largest)
            total += weight
            if lane == k % WARP_SIZE:
                ids[first + k] = int32(id_of(chosen))
                shares[first + k] = weight
        if not is_normalised:
            total = _sum_over_all(row, largest)
        for k in range(lane, n_used, WARP_SIZE):  # those that the lane itself has stored
            shares[first + k] *= scale / total

    return Kernel(choose_experts_kernel, registers=MAX_REGISTERS)


def choose_experts(
    logits: Any,
    ids: Any,
    shares: Any,
    *,
    stream: Launcher,
    scale: float = 1.0,
    is_normalised: bool = True,
) -> None:
    """ids, shares [n_tokens * n_used] of the largest logits [n_tokens, n_experts]"""
    check_array("logits", logits, np.float32, (None, None))
    n_tokens, n_experts = logits.shape
    if not 1 <= n_experts <= MAX_VOCAB_SIZE:
        raise KernelContractError(
            f"logits: expected 1 to {MAX_VOCAB_SIZE} experts, got {n_experts}"
        )
    check_array("ids", ids, np.int32, (None,))
    check_array("shares", shares, np.float32, ids.shape)
    n_slots = int(ids.shape[0])
    if not n_tokens <= n_slots <= n_tokens * n_experts or n_slots % max(n_tokens, 1):
        raise KernelContractError(
            f"ids: expected 1 to {n_experts} for each of {n_tokens} tokens, got {n_slots}"
        )
    if n_tokens:
        args = logits, np.int32(n_slots // n_tokens), np.float32(scale), ids, shares
        stream.launch(_compile(is_normalised), n_tokens, WARP_SIZE, *args)
