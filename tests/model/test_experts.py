"""Which experts a router chooses; models that have none where they must are refused."""

from pathlib import Path

import numpy as np
import pytest

from m40llm.errors import ModelFileError, UnsupportedModelError
from m40llm.gguf import open_gguf
from m40llm.model.arch import architecture_of
from m40llm.model.experts import choose
from m40llm.model.hparams import HParams
from m40llm.model.weights import check_tensors
from m40llm.testing import write_tiny_gguf


def test_the_largest_of_sum_one() -> None:
    logits = np.log(np.array([[0.1, 0.4, 0.2, 0.3], [0.25, 0.25, 0.25, 0.25]], np.float32))
    chosen, shares = choose(logits, 2)
    np.testing.assert_array_equal(chosen, [[1, 3], [0, 1]])  # among equals the first
    np.testing.assert_allclose(shares, [[4 / 7, 3 / 7], [0.5, 0.5]], rtol=1e-6)


def test_large_logits_do_not_overflow() -> None:
    chosen, shares = choose(np.array([[1e30, -1e30, 3e38]], np.float32), 3)
    np.testing.assert_array_equal(chosen, [[2, 0, 1]])
    np.testing.assert_array_equal(shares, [[1, 0, 0]])


def test_qwen3moe_without_experts(tmp_path: Path) -> None:
    keys = {"qwen3moe.expert_count": 0}
    path = write_tiny_gguf(tmp_path / "t.gguf", arch="qwen3moe", metadata=keys)
    with open_gguf(path) as file, pytest.raises(UnsupportedModelError, match="expected experts"):
        architecture_of(file)


def test_a_file_with_other_experts_than_it_says(tmp_path: Path) -> None:
    keys = {"llama.expert_count": 7}
    path = write_tiny_gguf(tmp_path / "t.gguf", arch="mixtral", metadata=keys)
    with open_gguf(path) as file, pytest.raises(ModelFileError, match="ffn_gate_inp"):
        check_tensors(file, architecture_of(file), HParams.from_gguf(file))
