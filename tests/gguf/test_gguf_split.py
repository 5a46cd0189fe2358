"""Split models: the first part opens all; what is missing or does not fit is named."""

import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Tensor
from gguf import GGUFValueType as Value

from m40llm.errors import ModelFileError
from m40llm.gguf import open_gguf
from m40llm.testing import build_gguf_bytes, field, tensor_info

VALUES = {f"t{index}": np.full(8, float(index), np.float32) for index in range(6)}


def part(folder: Path, number: int) -> Path:
    return folder / f"m-{number:05}-of-00003.gguf"


@pytest.fixture
def split(tmp_path: Path) -> Path:
    """A folder with a model in three parts of two tensors, by the gguf package's writer."""
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", split_max_tensors=2)
    for name, values in VALUES.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path


def rewrite(path: Path, no: int, count: int, n_tensors: int = 6, name: str = "extra") -> None:
    """Another file in the place of a part, with one tensor."""
    fields = [
        field("split.no", Value.UINT16, no),
        field("split.count", Value.UINT16, count),
        field("split.tensors.count", Value.INT32, n_tensors),
    ]
    path.write_bytes(build_gguf_bytes(fields, [tensor_info(name, [4], Tensor.F32, 0)], bytes(16)))


def test_the_first_part_opens_all(split: Path) -> None:
    with open_gguf(part(split, 1)) as file:
        assert list(file.tensors) == list(VALUES)
        assert [tensor.part for tensor in file.tensors.values()] == [0, 0, 1, 1, 2, 2]
        assert file.n_bytes == sum(path.stat().st_size for path in split.glob("*.gguf"))
        for name, values in VALUES.items():
            assert file.tensor_bytes(name).tobytes() == values.tobytes()


def test_a_later_part_says_which_to_open(split: Path) -> None:
    with pytest.raises(ModelFileError, match=r"part 2 of 3; open the first one, m-00001-of-00003"):
        open_gguf(part(split, 2))


def test_a_missing_part_is_named(split: Path) -> None:
    part(split, 3).unlink()
    with pytest.raises(ModelFileError, match=r"m-00003-of-00003\.gguf: cannot be read: No such"):
        open_gguf(part(split, 1))


def test_a_renamed_part_says_what_name_is_expected(split: Path) -> None:
    part(split, 1).rename(split / "model.gguf")
    with pytest.raises(ModelFileError, match=r"one of 3 parts .* ends in -00001-of-00003\.gguf"):
        open_gguf(split / "model.gguf")


def test_the_wrong_part_in_a_place(split: Path) -> None:
    shutil.copy(part(split, 3), part(split, 2))
    with pytest.raises(ModelFileError, match=r"m-00002.*: expected split\.no 1 .*, got 2 of 3"):
        open_gguf(part(split, 1))


def test_a_part_of_another_model(split: Path) -> None:
    rewrite(part(split, 3), no=2, count=4)
    with pytest.raises(ModelFileError, match=r"m-00003.*split\.count 3, got 2 of 4"):
        open_gguf(part(split, 1))


def test_the_total_of_tensors_must_fit(split: Path) -> None:
    rewrite(part(split, 3), no=2, count=3)
    with pytest.raises(ModelFileError, match=r"'split.tensors.count': expected 5, .*, got 6"):
        open_gguf(part(split, 1))


def test_a_tensor_in_two_parts(split: Path) -> None:
    rewrite(part(split, 3), no=2, count=3, name="t0")
    with pytest.raises(ModelFileError, match="tensor 't0' is in part 1 and in part 3"):
        open_gguf(part(split, 1))


def test_a_broken_part_is_named(split: Path) -> None:
    part(split, 2).write_bytes(part(split, 2).read_bytes()[:-1])
    with pytest.raises(ModelFileError, match=r"m-00002-of-00003\.gguf: tensor 't3'"):
        open_gguf(part(split, 1))


@pytest.mark.parametrize("count", [0, 1])
def test_a_merged_model_is_one_file(tmp_path: Path, count: int) -> None:
    path = tmp_path / "merged.gguf"
    rewrite(path, no=0, count=count, n_tensors=1)
    assert list(open_gguf(path).tensors) == ["extra"]
