"""The same inputs give the same bits: run to run, load to load, whatever was asked before.

Alone and in a batch: tests/model/test_company.py.
"""

from collections.abc import Callable

import numpy as np
import pytest

from m40llm import SamplingParams
from m40llm.research import LLM, compare

IDS = [5, 9, 200, 31, 77, 8, 14, 3]
DEVICES = ["cpu", "emulator", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
def test_run_to_run(device: str, loaded: Callable[..., LLM]) -> None:
    shape = {"head_dim": 32, "n_layers": 2, "tensor_type": "Q8_0"}
    first, again = (loaded(device=device, **shape) for _ in range(2))
    params = SamplingParams(temperature=0.8, max_tokens=6, seed=3, logprobs=2, ignore_eos=True)
    answer = first.generate(IDS, params)
    first.generate(IDS[::-1], SamplingParams(max_tokens=2))  # what was asked before is forgotten
    assert first.generate(IDS, params).logprobs == answer.logprobs
    assert again.generate(IDS, params).logprobs == answer.logprobs
    assert not compare(first, again, IDS).most.any()
    np.testing.assert_array_equal(first.logits(IDS), again.logits(IDS))
