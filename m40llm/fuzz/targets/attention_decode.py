"""Attention of single tokens, one a sequence, over a cache that is poisoned beyond each length."""

from collections.abc import Callable
from typing import Any

import numpy as np

from m40llm.fuzz.attention import IDLE_SHARE, Case, poisoned_cache
from m40llm.fuzz.contents import normals
from m40llm.fuzz.definition import target
from m40llm.fuzz.strategies import choices, lengths, seeds, sizes
from m40llm.kernels import attention_decode as kernels
from m40llm.kernels.attention_decode import MIN_SPLIT_KEYS, partial_shape

# head_dim, heads of a group, soft cap: a kernel each; groups of more than 4 take two tiles.
FORMS = choices(
    [(32, 1, 0.0), (32, 5, 0.0), (64, 4, 0.0), (80, 2, 30.0), (16, 7, 0.0), (96, 6, 0.5)]
)
FORMS_Q8 = choices([(32, 1, 0.0), (32, 5, 30.0), (64, 4, 0.0), (96, 2, 0.0), (128, 3, 0.0)])
WINDOWS = choices([0, 0, 0, 1, 7, 70])


DRAWS: dict[str, Any] = {
    "seq_lens": lengths(MIN_SPLIT_KEYS, 3),
    "n_kv_heads": sizes(2, 2),
    "window": WINDOWS,
    "n_splits": choices([1, 2, 3, 4, 5]),
    "seed": seeds(),
}


@target(ops=kernels, form=FORMS, **DRAWS)
def attention_decode(
    card: Any, ops: Any, form: tuple[int, int, float], seq_lens: tuple[int, ...], n_kv_heads: int,
    window: int, n_splits: int, seed: int,
) -> None:  # fmt: skip
    case = drawn(form, seq_lens, n_kv_heads, window, seed)
    launched(card, ops.attention_decode, case, n_splits)


@target(ops=kernels, form=FORMS_Q8, **DRAWS)
def attention_decode_q8(
    card: Any, ops: Any, form: tuple[int, int, float], seq_lens: tuple[int, ...], n_kv_heads: int,
    window: int, n_splits: int, seed: int,
) -> None:  # fmt: skip
    case = drawn(form, seq_lens, n_kv_heads, window, seed).quantised()
    launched(card, ops.attention_decode_q8, case, n_splits)


def drawn(
    form: tuple[int, int, float], seq_lens: tuple[int, ...], n_kv_heads: int, window: int,
    seed: int,
) -> Case:  # fmt: skip
    """A row a sequence, its last token; some are idle."""
    head_dim, group_size, softcap = form
    rng, n_heads = np.random.default_rng(seed), n_kv_heads * group_size
    seq = rng.permutation(len(seq_lens)).astype(np.int32)
    shape = (n_kv_heads, max(seq_lens) + 3, head_dim)
    spread = rng.choice([1, 20]) if softcap else 1  # scores within the cap, and far beyond
    pos = (np.array(seq_lens, np.int32) - 1)[seq]
    pos[rng.random(len(seq)) < IDLE_SHARE] = -1
    return Case(
        q=normals(rng, len(seq), n_heads, head_dim, spread=spread),
        k=poisoned_cache(rng, seq_lens, *shape),
        v=poisoned_cache(rng, seq_lens, *shape),
        seq=seq,
        pos=pos,
        scale=head_dim**-0.5,
        window=window,
        softcap=softcap,
    )


def launched(card: Any, op: Callable[..., None], case: Case, n_splits: int) -> None:
    n_tokens, n_heads, head_dim = case.q.shape
    partial = card.poisoned(partial_shape(n_tokens, n_heads, head_dim, n_splits))
    arrived = card.upload(np.zeros((n_tokens, n_heads), np.int32), read_only=False)
    out = card.guarded(case.q.shape)
    op(*case.uploaded(card), partial, arrived, out, **case.options, stream=card)
    assert not card.read(arrived).any(), "arrived: not left zero for the next launch"
    case.check(card.read(out))
