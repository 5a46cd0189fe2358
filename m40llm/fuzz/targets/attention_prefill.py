"""Attention of runs of new tokens over a cache that is poisoned beyond each length."""

from typing import Any

import numpy as np

from m40llm.fuzz.attention import Case, poisoned_cache
from m40llm.fuzz.contents import normals
from m40llm.fuzz.definition import target
from m40llm.fuzz.strategies import choices, lengths, seeds, sizes
from m40llm.kernels import attention_prefill as kernels
from m40llm.kernels.attention_tiles import BM, HALF_KEYS

# head_dim, heads of a group, soft cap: a kernel each but for the group.
FORMS = choices([(32, 1, 0.0), (32, 5, 0.0), (64, 3, 0.0), (80, 2, 30.0), (256, 2, 0.0)])
FORMS_Q8 = choices([(32, 1, 0.0), (64, 3, 30.0), (96, 5, 0.0), (256, 2, 0.0)])
WINDOWS = choices([0, 0, 1, 7, 30])


DRAWS: dict[str, Any] = {
    "run_lens": lengths(BM // 2, 3, BM // 2 + 8),
    "n_before": choices([0, 1, 15, 16, HALF_KEYS - 2, HALF_KEYS - 1, HALF_KEYS]),
    "n_kv_heads": sizes(2, 2),
    "window": WINDOWS,
    "seed": seeds(),
}


@target(ops=kernels, form=FORMS, **DRAWS)
def attention_prefill(
    card: Any, ops: Any, form: tuple[int, int, float], run_lens: tuple[int, ...], n_before: int,
    n_kv_heads: int, window: int, seed: int,
) -> None:  # fmt: skip
    case = drawn(form, run_lens, n_before, n_kv_heads, window, seed)
    out = card.guarded(case.q.shape)
    ops.attention_prefill(*case.uploaded(card), out, **case.options, stream=card)
    case.check(card.read(out))


@target(ops=kernels, form=FORMS_Q8, **DRAWS)
def attention_prefill_q8(
    card: Any, ops: Any, form: tuple[int, int, float], run_lens: tuple[int, ...], n_before: int,
    n_kv_heads: int, window: int, seed: int,
) -> None:  # fmt: skip
    case = drawn(form, run_lens, n_before, n_kv_heads, window, seed).quantised()
    out = card.guarded(case.q.shape)
    ops.attention_prefill_q8(*case.uploaded(card), out, **case.options, stream=card)
    case.check(card.read(out))


def drawn(
    form: tuple[int, int, float], run_lens: tuple[int, ...], n_before: int, n_kv_heads: int,
    window: int, seed: int,
) -> Case:  # fmt: skip
    """Each run is of a sequence of its own, in a drawn order; every other one begins at 0."""
    head_dim, group_size, softcap = form
    rng = np.random.default_rng(seed)
    before = [n_before * (s % 2 == 0) for s in range(len(run_lens))]
    seq_lens = [n + b for n, b in zip(run_lens, before, strict=True)]
    order = rng.permutation(len(run_lens)).astype(np.int32)
    seq = np.concatenate([np.full(run_lens[s], s, np.int32) for s in order])
    pos = np.concatenate([before[s] + np.arange(run_lens[s], dtype=np.int32) for s in order])
    shape = (n_kv_heads, max(seq_lens) + 3, head_dim)
    spread = rng.choice([1, 20]) if softcap else 1  # scores within the cap, and far beyond
    return Case(
        q=normals(rng, len(seq), n_kv_heads * group_size, head_dim, spread=spread),
        k=poisoned_cache(rng, seq_lens, *shape),
        v=poisoned_cache(rng, seq_lens, *shape),
        seq=seq,
        pos=pos.astype(np.int32),
        scale=head_dim**-0.5,
        window=window,
        softcap=softcap,
    )
