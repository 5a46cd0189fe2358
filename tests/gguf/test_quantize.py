"""A file in another type: values of gguf.quants or k_quants, all metadata, never half a file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as GGMLType
from gguf import GGUFReader, GGUFValueType
from gguf.quants import quantize as gguf_quantize

from m40llm import LLM
from m40llm.errors import ModelFileError, RequestError
from m40llm.gguf import open_gguf
from m40llm.gguf import quantize as module
from m40llm.gguf.blocks import dequantize
from m40llm.gguf.k_quants import quantize_k
from m40llm.gguf.quantize import quantize_file
from m40llm.gguf.recipes import recipe_of
from m40llm.testing import write_tiny_gguf
from m40llm.testing.craft import build_gguf_bytes, field, tensor_info

WIDE = {"n_embd": 256, "n_ff": 256}  # whole blocks of every type
NAMES = ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4"]
K_NAMES = ["Q4_K", "Q5_K", "Q6_K"]
NOT_FINITE = [(np.nan, "Q8_0"), (np.nan, "Q4_K"), (np.inf, "Q5_K"), (-np.inf, "Q6_K")]


def converted(path: Path, out: Path, name: str) -> Any:
    with open_gguf(path) as file:
        return quantize_file(file, out, recipe_of(name))


def matrices(path: Path) -> dict[str, np.ndarray]:
    with open_gguf(path) as file:
        return {
            name: dequantize(info.type, file.tensor_bytes(name)).reshape(info.shape)
            for name, info in file.tensors.items()
            if len(info.shape) == 2
        }


@pytest.mark.parametrize("name", [*NAMES, *K_NAMES])
@pytest.mark.parametrize("n_at_once", [1 << 24, 1000])
def test_the_values_are_those_of_gguf_quants_or_k_quants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, n_at_once: int
) -> None:
    """Also where a tensor is read three rows at a time."""
    monkeypatch.setattr(module, "_WEIGHTS_AT_ONCE", n_at_once)
    before = write_tiny_gguf(tmp_path / "a.gguf", n_layers=1, **WIDE)
    written = converted(before, tmp_path / "b.gguf", name)
    sum_error, sum_weight = 0.0, 0.0
    with open_gguf(tmp_path / "b.gguf") as after:
        for tensor, weights in matrices(before).items():
            info = after.tensors[tensor]
            assert info.type.name == name
            quantize = quantize_k if name in K_NAMES else gguf_quantize
            expected = quantize(weights, info.type).view(np.uint8).reshape(-1)
            np.testing.assert_array_equal(after.tensor_bytes(tensor), expected)
            again = dequantize(info.type, expected.reshape(len(weights), -1))
            sum_error += float(((again - weights.astype(np.float64)) ** 2).sum())
            sum_weight += float((weights.astype(np.float64) ** 2).sum())
        n_bytes = sum(info.n_bytes for info in after.tensors.values())
    assert written.n_bytes_after == n_bytes
    assert written.relative_error == pytest.approx((sum_error / sum_weight) ** 0.5)
    assert not written.fallbacks


@pytest.mark.parametrize(
    ("name", "most", "file_type"), [("Q4_K", 0.09, 14), ("Q5_K", 0.045, 16), ("Q6_K", 0.02, 18)]
)
def test_a_k_quant_runs_and_says_almost_the_same(
    tmp_path: Path, name: str, most: float, file_type: int
) -> None:
    """Errors are those of normal weights (0.070, 0.035, 0.018); MOSTLY_Q4_K_S, Q5_K_S, Q6_K."""
    before = write_tiny_gguf(tmp_path / "a.gguf", n_layers=1, **WIDE)
    written = converted(before, tmp_path / "b.gguf", name)
    assert 0 < written.relative_error < most
    assert set(written.types) == {name, "F32"}
    assert GGUFReader(tmp_path / "b.gguf").fields["general.file_type"].contents() == file_type
    with LLM.load(before, device="cpu") as a, LLM.load(tmp_path / "b.gguf", device="cpu") as b:
        exact, rounded = a.logits([1, 5, 9]), b.logits([1, 5, 9])
    assert np.linalg.norm(rounded - exact) < 6 * most * np.linalg.norm(exact)


def test_metadata_and_vectors_stay(tmp_path: Path) -> None:
    before = write_tiny_gguf(tmp_path / "a.gguf", arch="qwen2", **WIDE)
    converted(before, tmp_path / "b.gguf", "Q8_0")
    old, new = (GGUFReader(tmp_path / name) for name in ("a.gguf", "b.gguf"))
    told = {"general.file_type", *(key for key in old.fields if key.startswith("GGUF."))}
    kept = [key for key in old.fields if key not in told]
    assert kept == [key for key in new.fields if key not in told]
    for key in kept:
        assert old.fields[key].types == new.fields[key].types
        assert old.fields[key].contents() == new.fields[key].contents(), key
    assert new.fields["general.file_type"].contents() == 7  # MOSTLY_Q8_0
    with open_gguf(before) as file, open_gguf(tmp_path / "b.gguf") as after:
        assert list(file.tensors) == list(after.tensors)
        for name, info in file.tensors.items():
            if len(info.shape) == 1:
                np.testing.assert_array_equal(file.tensor_bytes(name), after.tensor_bytes(name))


def test_the_same_type_is_a_copy_and_the_model_says_the_same(tmp_path: Path) -> None:
    before = write_tiny_gguf(tmp_path / "a.gguf", tensor_type="Q4_K", **WIDE)
    converted(before, tmp_path / "f32.gguf", "F32")
    ids = [1, 5, 9]
    with LLM.load(before, device="cpu") as a, LLM.load(tmp_path / "f32.gguf", device="cpu") as b:
        np.testing.assert_allclose(a.logits(ids), b.logits(ids), rtol=0, atol=1e-4)
    again = converted(tmp_path / "f32.gguf", tmp_path / "again.gguf", "F32")
    assert again.relative_error == 0.0
    for name, weights in matrices(tmp_path / "again.gguf").items():
        np.testing.assert_array_equal(weights, matrices(before)[name])


def test_the_file_that_is_read_is_not_replaced(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "a.gguf")
    before = path.read_bytes()
    with pytest.raises(RequestError, match="another file"):
        converted(path, path, "Q8_0")
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("weight", "name", "error", "told"),
    [
        *((value, name, ModelFileError, "no finite") for value, name in NOT_FINITE),
        (1e6, "F16", RequestError, "BF16 and F32"),
        *((1e9, name, RequestError, f"{name} cannot hold the weights of") for name in K_NAMES),
    ],
)
def test_weights_that_cannot_be_held_leave_no_file(
    tmp_path: Path, weight: float, name: str, error: type[Exception], told: str
) -> None:
    path = write_tiny_gguf(tmp_path / "a.gguf", **WIDE)
    with open_gguf(path) as file:
        info = file.tensors["blk.0.ffn_up.weight"]
    data = bytearray(path.read_bytes())
    data[info.offset : info.offset + 4] = np.float32(weight).tobytes()
    path.write_bytes(data)
    out = tmp_path / "b.gguf"
    out.write_bytes(b"mine")
    with pytest.raises(error, match=told):
        converted(path, out, name)
    assert out.read_bytes() == b"mine"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.gguf", "b.gguf"]


def test_an_interrupt_leaves_no_file(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "a.gguf")

    def interrupt(stage: str, fraction: float) -> None:
        raise KeyboardInterrupt

    with open_gguf(path) as file, pytest.raises(KeyboardInterrupt):
        quantize_file(file, tmp_path / "b.gguf", recipe_of("Q8_0"), interrupt)
    assert [file.name for file in tmp_path.iterdir()] == ["a.gguf"]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "a.gguf")
    with pytest.raises(RequestError, match="cannot be written"):
        converted(path, tmp_path / "nowhere" / "b.gguf", "Q8_0")


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_parts_hold_the_same_and_become_one_file_again(tmp_path: Path) -> None:
    whole = write_tiny_gguf(tmp_path / "whole.gguf", tensor_type="Q4_0", **WIDE)
    folder = tmp_path / "parts"
    folder.mkdir()
    with open_gguf(whole) as file:
        largest = max(info.n_bytes for info in file.tensors.values())
        copy = recipe_of("COPY")
        written = quantize_file(file, folder / "m.gguf", copy, part_bytes=2 * largest)
        n_parts = len(written.paths)
        assert n_parts > 1
        assert names_in(folder) == [f"m-{i + 1:05}-of-{n_parts:05}.gguf" for i in range(n_parts)]
        with open_gguf(written.paths[0]) as split:
            assert split.paths == tuple(written.paths)
            again = quantize_file(split, tmp_path / "again.gguf", copy)
        with open_gguf(again.paths[0]) as merged:
            assert list(merged.tensors) == list(file.tensors)
            for name in file.tensors:
                np.testing.assert_array_equal(merged.tensor_bytes(name), file.tensor_bytes(name))
    old, new = (GGUFReader(path).fields for path in (whole, again.paths[0]))
    told = [
        {key: fields[key].contents() for key in fields if key[:5] != "GGUF."}
        for fields in (old, new)
    ]
    assert told[0] == told[1]


def test_parts_of_a_name_with_dots(tmp_path: Path) -> None:
    whole = write_tiny_gguf(tmp_path / "whole.gguf", **WIDE)
    with open_gguf(whole) as file:
        n_parts = len(file.tensors)
        written = quantize_file(file, tmp_path / "m-3.1", recipe_of("COPY"), part_bytes=1)
    assert written.paths[0].name == f"m-3.1-00001-of-{n_parts:05}.gguf"


def test_a_folder_in_the_way_is_found_before_anything_is_written(tmp_path: Path) -> None:
    whole = write_tiny_gguf(tmp_path / "whole.gguf", **WIDE)
    with open_gguf(whole) as file:
        second = tmp_path / f"m-00002-of-{len(file.tensors):05}.gguf"
        second.mkdir()
        for path, part_bytes in ((tmp_path / "m.gguf", 1), (second, 0)):
            with pytest.raises(RequestError, match="a directory, expected a file to write"):
                quantize_file(file, path, recipe_of("COPY"), part_bytes=part_bytes)
    assert names_in(tmp_path) == [second.name, "whole.gguf"]


def test_an_alignment_that_only_the_first_part_could_tell_is_not_kept(tmp_path: Path) -> None:
    fields = [
        field("general.architecture", GGUFValueType.STRING, "llama"),
        field("general.alignment", GGUFValueType.UINT32, 128),
    ]
    offsets = {"a": 0, "b": 128, "c": 256}
    infos = [tensor_info(name, [4], GGMLType.F32, offset) for name, offset in offsets.items()]
    data = b"".join(name.encode() * 16 + bytes(112) for name in offsets)
    path = tmp_path / "a.gguf"
    path.write_bytes(build_gguf_bytes(fields, infos, data, alignment=128))
    copy = recipe_of("COPY")
    with open_gguf(path) as file:
        whole = quantize_file(file, tmp_path / "b.gguf", copy)
        parts = quantize_file(file, tmp_path / "c.gguf", copy, part_bytes=16)
    for written, n_parts, alignment in ((whole, 1, 128), (parts, 3, 32)):
        assert len(written.paths) == n_parts
        with open_gguf(written.paths[0]) as file:
            assert file.alignment == alignment
            assert {name: bytes(file.tensor_bytes(name)) for name in offsets} == {
                name: name.encode() * 16 for name in offsets
            }


def test_parts_that_are_there_stay_where_they_must_not_be_replaced(tmp_path: Path) -> None:
    whole = write_tiny_gguf(tmp_path / "whole.gguf", **WIDE)
    with open_gguf(whole) as file:
        n_parts = len(file.tensors)
        second = tmp_path / f"m-00002-of-{n_parts:05}.gguf"
        second.write_bytes(b"mine")
        copy = recipe_of("COPY")
        with pytest.raises(RequestError, match="is there already"):
            quantize_file(file, tmp_path / "m.gguf", copy, part_bytes=1, replace=False)
        assert names_in(tmp_path) == [second.name, "whole.gguf"]
        assert second.read_bytes() == b"mine"
        written = quantize_file(file, tmp_path / "m.gguf", copy, part_bytes=1)
    with open_gguf(written.paths[0]) as parts, pytest.raises(RequestError, match="another file"):
        quantize_file(parts, second, copy)
