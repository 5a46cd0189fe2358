"""Models whose experts are not what their keys say are refused; keys that change the shares."""

from collections.abc import Callable
from pathlib import Path

import pytest

from m40llm.device.cpu.ops import CpuOps
from m40llm.device.ops import Ops
from m40llm.errors import ModelFileError, UnsupportedModelError
from m40llm.fuzz.bounds import gamma
from m40llm.gguf import open_gguf
from m40llm.model.arch import architecture_of
from m40llm.model.batch import Batch
from m40llm.model.check_tensors import check_tensors
from m40llm.model.hparams import HParams
from m40llm.model.transformer import Transformer
from m40llm.testing import write_tiny_gguf
from m40llm.testing.reference_ops import ReferenceOps


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


@pytest.mark.parametrize("make_ops", [CpuOps, ReferenceOps])
@pytest.mark.parametrize("is_normalised", [True, False])
def test_shares_as_the_file_says(
    is_normalised: bool, make_ops: Callable[[], Ops], tiny: Callable[..., Transformer]
) -> None:
    """Of a softmax over all experts: brought to the sum 1, or kept as they are."""
    keys = {"qwen3moe.expert_weights_norm": is_normalised}
    model = tiny(make_ops(), arch="qwen3moe", metadata=keys)
    model.forward(Batch.of((0, 0, [1, 2, 3])))
    of_experts = model.workspace.rows(3).expert_rows
    assert of_experts is not None
    total = model.ops.read(of_experts.shares).sum()  # of the last layer
    if is_normalised:
        assert abs(total - 3) <= 3 * gamma(model.hp.n_experts_used + 8)
    else:
        assert 0 < total < 2.9  # 2 of 8 experts a token
