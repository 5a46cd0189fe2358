"""Masks of the decode program against NumPy: drawn by the fuzz target, with the edges named."""

from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from m40llm.fuzz.bench import Bench
from m40llm.fuzz.targets.program_mask import program_mask

EDGE = {"n_seqs": 1, "density": 0.5, "is_late": False, "is_sliced": False, "seed": 0}


@settings(max_examples=30)
@given(
    vocab_size=st.integers(1, 400),
    n_blocks=st.integers(1, 5),
    group_rows=st.sampled_from([2, 4, 8]),
    is_sliced=st.booleans(),
    n_seqs=st.sampled_from([1, 2, 4]),
    density=st.sampled_from([0.0, 0.01, 0.5, 1.0]),
    is_late=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
@example(vocab_size=1, n_blocks=5, group_rows=8, **EDGE)  # blocks without rows
@example(vocab_size=17_000, n_blocks=1, group_rows=2, **EDGE)  # more words than threads
@example(vocab_size=97, n_blocks=3, group_rows=2, **{**EDGE, "is_late": True})
@example(vocab_size=300, n_blocks=4, group_rows=4, **{**EDGE, "density": 0.0, "is_sliced": True})
def test_what_a_mask_leaves(launcher: Any, seed: int, **case: Any) -> None:
    program_mask.run(Bench(launcher.reordered(seed)), {"seed": seed, **case})
