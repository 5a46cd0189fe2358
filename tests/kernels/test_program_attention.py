"""Attention as an instruction of the decode program, alone in a kernel: against the reference."""

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from m40llm.fuzz.instruction_alone import attend_alone, form_of
from m40llm.fuzz.targets.program_attention import MAX_SEQ_LEN, check_attend, drawn
from m40llm.kernels.program.attend import attend_of
from m40llm.kernels.program.attend_shape import KEYS_UNIT, split_shape

SHAPES: dict[str, tuple[Any, ...]] = {  # n_heads, n_kv_heads, head_dim, rope_dim, layout, norms
    "8 keys a load": (4, 2, 32, 32, "half", "none"),
    "odd groups": (6, 2, 64, 64, "half", "none"),
    "padded lanes": (2, 1, 80, 80, "half", "none"),
    "a key a load": (2, 2, 256, 256, "half", "none"),
    "more lane groups than elements": (3, 1, 16, 16, "half", "none"),
    "norms": (4, 2, 32, 32, "half", "head"),
    "norms of all heads": (6, 2, 64, 64, "half", "row"),
    "norms, half turned": (3, 1, 80, 40, "interleaved", "head"),
    "norms, a head of two quads a lane": (2, 1, 256, 256, "half", "head"),
}


@pytest.mark.parametrize("name", SHAPES)
@settings(max_examples=8)
@given(
    n_keys=st.integers(1, MAX_SEQ_LEN),
    window=st.sampled_from([0, 0, 1, 100, 600]),
    n_blocks=st.integers(1, 14),
    seed=st.integers(0, 2**32 - 1),
    spread=st.sampled_from([1.0, 30.0]),  # of scores: those of 30 make sums be rescaled
)
@example(n_keys=1, window=0, n_blocks=3, seed=0, spread=1.0)  # the cache is empty
@example(n_keys=MAX_SEQ_LEN, window=0, n_blocks=14, seed=1, spread=1.0)  # all splits there are
@example(n_keys=513, window=0, n_blocks=14, seed=2, spread=1.0)  # a split of few keys
@example(n_keys=MAX_SEQ_LEN, window=0, n_blocks=1, seed=3, spread=30.0)  # rescaled again and again
def test_parity(
    launcher: Any, name: str, n_keys: int, window: int, n_blocks: int, seed: int, spread: float
) -> None:
    """The output; the newest key and value are rounded once, nothing else is touched."""
    form = form_of(*SHAPES[name])
    given_to_it = drawn(form, n_keys, window, spread, seed)
    check_attend(launcher, attend_of, form, given_to_it, n_blocks)


def test_parts_are_given_through_the_exchange() -> None:
    """An empty one would be waited for for ever; so a split has keys, whatever the length."""
    form = form_of(*SHAPES["odd groups"])
    assert split_shape(form, 14) == (1, 6, 3, 66, 2)
    assert MAX_SEQ_LEN % KEYS_UNIT == 0


@pytest.mark.parametrize("name", ["8 keys a load", "norms"])
def test_a_key_that_fp16_cannot_hold(launcher: Any, name: str) -> None:
    """It is the largest that it can hold, here as in rope_append: infinity would make NaN."""
    form = form_of(*SHAPES[name])
    found = drawn(form, 5, 0, 1.0, 0)
    found.qkv[form.q_dim :] *= np.float32(1e5)
    found.k_norm *= np.float32(1e5)
    _, k, v = attend_alone(launcher, attend_of, form, found, 2)
    for cache in (k, v):
        assert np.isfinite(cache[0, :, 4]).all()
        assert (np.abs(cache[0, :, 4]) == 65504).any()
