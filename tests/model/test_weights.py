"""Tensors that are missing, transposed, unknown or of the wrong shape are refused by name."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter

from m40llm.errors import ModelFileError, UnsupportedModelError
from m40llm.gguf import open_gguf
from m40llm.model.arch import architecture_of
from m40llm.model.check_tensors import check_tensors
from m40llm.model.hparams import HParams
from m40llm.testing import write_tiny_gguf


def rewrite(path: Path, changes: dict[str, Any]) -> Path:
    """The file again with tensors replaced (array), left out (None) or added."""
    reader = GGUFReader(path)
    out = path.with_name("changed.gguf")
    writer = GGUFWriter(out, "llama")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        sub_type = field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type)
    tensors = {t.name: np.array(t.data) for t in reader.tensors} | changes
    for name, data in tensors.items():
        if data is not None:
            writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def check(path: Path) -> None:
    with open_gguf(path) as file:
        check_tensors(file, architecture_of(file), HParams.from_gguf(file))


@pytest.mark.parametrize(
    ("changes", "kind", "fragments"),
    [
        ({"output_norm.weight": None}, ModelFileError, ["output_norm.weight", "missing", "[64]"]),
        (
            {"blk.1.ffn_up.weight": np.zeros((64, 128), np.float32)},
            ModelFileError,
            ["blk.1.ffn_up.weight", "[128, 64]", "[64, 128]", "transposed"],
        ),
        (
            {"blk.0.attn_norm.weight": np.zeros(63, np.float32)},
            ModelFileError,
            ["blk.0.attn_norm.weight", "[64]", "[63]"],
        ),
        (
            {"blk.0.attn_q_norm.weight": np.zeros(16, np.float32)},
            UnsupportedModelError,
            ["blk.0.attn_q_norm.weight", "llama"],
        ),
    ],
)
def test_refused(
    tmp_path: Path, changes: dict[str, Any], kind: type[Exception], fragments: list[str]
) -> None:
    path = rewrite(write_tiny_gguf(tmp_path / "tiny.gguf"), changes)
    with pytest.raises(kind) as caught:
        check(path)
    assert all(fragment in str(caught.value) for fragment in fragments), caught.value


def test_tensors_that_old_converters_derived_are_let_pass(tmp_path: Path) -> None:
    extra = {"blk.0.attn_rot_embd.weight": np.ones(8, np.float32)}
    check(rewrite(write_tiny_gguf(tmp_path / "tiny.gguf"), extra))


def test_unknown_architecture_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "t.gguf", metadata={"general.architecture": "mamba"})
    with open_gguf(path) as file, pytest.raises(UnsupportedModelError, match=r"llama.*'mamba'"):
        architecture_of(file)


def test_experts_are_refused(tmp_path: Path) -> None:
    path = write_tiny_gguf(
        tmp_path / "t.gguf",
        arch="qwen2",
        metadata={"qwen2.expert_count": 8, "qwen2.expert_used_count": 2},
    )
    with open_gguf(path) as file, pytest.raises(UnsupportedModelError, match="8 experts"):
        architecture_of(file)
