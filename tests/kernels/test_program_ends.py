"""begin_step and end_step against NumPy: drawn by the fuzz target, with the edges named."""

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from m40llm.errors import KernelContractError
from m40llm.fuzz.bench import Bench
from m40llm.fuzz.targets.program_ends import program_ends
from m40llm.kernels.program.ends import MAX_SLOTS, StepEnds, begin_step
from m40llm.kernels.program.words import N_WORDS


@settings(max_examples=15)
@given(
    n_seqs=st.sampled_from([1, 3, 17]),
    vocab_size=st.integers(1, 1500),
    has_masks=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
@example(n_seqs=17, vocab_size=4999, has_masks=True, seed=1)
@example(n_seqs=1, vocab_size=1, has_masks=False, seed=2)
def test_a_step(launcher: Any, seed: int, **case: Any) -> None:
    program_ends.run(Bench(launcher.reordered(seed)), {"seed": seed, **case})


def test_contract(launcher: Any) -> None:
    with pytest.raises(KernelContractError, match=rf"code: expected int64\[1, {N_WORDS}\]"):
        begin_step(StepEnds(launcher.upload(np.zeros((1, 3), np.int64)), 1), stream=launcher)
    code = launcher.upload(np.zeros((1, N_WORDS), np.int64))
    with pytest.raises(KernelContractError, match=f"n_seqs: expected 1 to {MAX_SLOTS}, got 65"):
        begin_step(StepEnds(code, 65), stream=launcher)
