"""The reader against the gguf package's own, and what only ours does: typed getters, views."""

import gc
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGUFValueType as Value

from m40llm.errors import ModelFileError, RequestError
from m40llm.gguf import GGUFFile, Metadata, open_gguf
from m40llm.gguf.split import _parse
from m40llm.testing import array_field, build_gguf_bytes, field, write_tiny_gguf
from m40llm.testing.random_blocks import WRITABLE

SHARED = (
    *(f"models/stories260K.{kind}.gguf" for kind in ("f32", "f16", "q8_0")),
    *(f"vocab/ggml-vocab-{name}.gguf" for name in ("llama-spm", "phi-3")),
)
MAPS = Path("/proc/self/maps")  # what is mapped into this process
SCALARS = {
    Value.UINT8: 255,
    Value.INT8: -128,
    Value.UINT16: 65535,
    Value.INT16: -32768,
    Value.UINT32: 2**32 - 1,
    Value.INT32: -(2**31),
    Value.UINT64: 2**64 - 1,
    Value.INT64: -(2**63),
    Value.FLOAT32: 0.1,
    Value.FLOAT64: 0.1,
    Value.BOOL: True,
    Value.STRING: "Grüße, 世界 🦙",
}


def check_against_gguf_package(path: Path) -> None:
    """Same keys, values, tensors and bytes as gguf.GGUFReader, in the same order."""
    theirs = gguf.GGUFReader(path)
    with open_gguf(path) as ours:
        keys = [key for key in theirs.fields if not key.startswith("GGUF.")]
        assert list(ours.metadata) == keys
        assert ours.version == theirs.fields["GGUF.version"].contents()
        assert ours.alignment == theirs.alignment
        assert ours.n_bytes == path.stat().st_size
        for key in keys:
            value = ours.metadata[key]
            listed = value.tolist() if isinstance(value, np.ndarray) else value
            assert listed == theirs.fields[key].contents(), key
        assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
        for tensor in theirs.tensors:
            info = ours.tensors[tensor.name]
            assert info.type == tensor.tensor_type
            assert info.shape == tuple(reversed(tensor.shape.tolist()))
            assert info.n_elements == tensor.n_elements
            assert info.n_bytes == tensor.n_bytes == info.row_bytes * np.prod(info.shape[:-1])
            assert info.offset == tensor.data_offset
            assert ours.tensor_bytes(tensor.name).tobytes() == tensor.data.tobytes()


@pytest.mark.parametrize("tensor_type", [type_.name for type_ in WRITABLE])
def test_tiny_files_of_every_type_read_as_the_gguf_package_reads_them(
    tmp_path: Path, tensor_type: str
) -> None:
    path = tmp_path / "tiny.gguf"
    check_against_gguf_package(write_tiny_gguf(path, tensor_type=tensor_type, n_layers=1))


@pytest.mark.parametrize("name", SHARED)
def test_shared_files_read_as_the_gguf_package_reads_them(shared_data: Path, name: str) -> None:
    if not (shared_data / name).exists():
        pytest.skip(f"no {name} in {shared_data}")
    check_against_gguf_package(shared_data / name)


def test_every_scalar_and_array_type() -> None:
    fields = [field(type_.name, type_, value) for type_, value in SCALARS.items()]
    arrays = [array_field(f"{type_.name}[]", type_, [v, v]) for type_, v in SCALARS.items()]
    empty = [array_field(f"{type_.name}[0]", type_, []) for type_ in SCALARS]
    metadata = _parse(build_gguf_bytes(fields + arrays + empty)).metadata
    for type_, value in SCALARS.items():
        expected = np.float32(value).item() if type_ is Value.FLOAT32 else value
        assert metadata[type_.name] == expected
        assert type(metadata[type_.name]) is type(value)
        assert list(metadata[f"{type_.name}[]"]) == [expected, expected]  # type: ignore[arg-type]
        assert len(metadata[f"{type_.name}[0]"]) == 0  # type: ignore[arg-type]
        assert metadata.n_items(f"{type_.name}[]") == 2
        assert metadata.n_items(type_.name) is None
        if type_ is not Value.STRING:
            array = metadata[f"{type_.name}[]"]
            assert isinstance(array, np.ndarray)
            assert not array.flags.writeable
            assert array.flags.aligned


@pytest.mark.parametrize(
    "strings",
    [
        ["a", "b"],
        ["", "", "a", ""],
        ["a\0b", "c"],
        ["\0", "\0\0\0\0\0\0\0\0", ""],
        ["é" * 128, "x" * 255, "x" * 256, "x" * 257],
        ["x" * 65_536, "y" * 65_535],
        ["z" * (2**24 + 1), "end"],
    ],
    ids=lambda strings: repr(strings)[:20],
)
def test_string_arrays_whatever_is_in_them(strings: list[str]) -> None:
    """NULs, empty texts and long ones leave the fast way of decoding; none may be seen to."""
    metadata = _parse(build_gguf_bytes([array_field("k", Value.STRING, strings)])).metadata
    assert metadata.get_strings("k") == strings


def test_versions_2_and_3_read_alike() -> None:
    for version in (2, 3):
        file = _parse(build_gguf_bytes([field("k", Value.INT8, 1)], version=version))
        assert (file.version, dict(file.metadata)) == (version, {"k": 1})


def metadata_of_every_kind() -> Metadata:
    return _parse(
        build_gguf_bytes(
            [
                field("int", Value.UINT32, 7),
                field("float", Value.FLOAT32, 0.5),
                field("nan", Value.FLOAT32, float("nan")),
                field("inf", Value.FLOAT64, float("inf")),
                field("bool", Value.BOOL, True),
                field("bool 2", Value.BOOL, 2),
                field("str", Value.STRING, "seven"),
                field("bad str", Value.STRING, b"a\xff"),
                array_field("ints", Value.INT16, [-1, 2]),
                array_field("big", Value.UINT64, [2**63]),
                array_field("bytes", Value.UINT8, [1, 2]),
                array_field("floats", Value.FLOAT32, [0.5, -1.0]),
                array_field("nans", Value.FLOAT32, [0.5, float("nan")]),
                array_field("strs", Value.STRING, ["a", "b"]),
                array_field("bad strs", Value.STRING, ["a", b"\xc3"]),
                array_field("bools", Value.BOOL, [1, 3]),
            ]
        ),
        "model.gguf",
    ).metadata


def test_getters_return_the_value_or_the_default() -> None:
    metadata = metadata_of_every_kind()
    assert metadata.get_int("int", minimum=7, maximum=7) == 7
    assert metadata.get_int("missing", None) is None
    assert metadata.get_float("float") == 0.5
    assert metadata.get_float("int") == 7.0
    assert metadata.get_float("missing", 2.0) == 2.0
    assert metadata.get_bool("bool") is True
    assert metadata.get_str("str") == "seven"
    assert metadata.get_strings("strs") == ["a", "b"]
    assert metadata.get_strings("missing", []) == []
    assert metadata.get_ints("ints").dtype == np.int64
    assert metadata.get_ints("bytes").tolist() == [1, 2]
    assert metadata.get_floats("floats").tolist() == [0.5, -1.0]


REFUSED = [
    ("get_int", "missing", {}, "expected an integer, got nothing: the key is missing"),
    ("get_int", "int", {"minimum": 8}, "expected an integer of at least 8, got 7"),
    ("get_int", "int", {"maximum": 6}, "expected an integer of at most 6, got 7"),
    ("get_int", "int", {"minimum": 1, "maximum": 6}, "expected an integer from 1 to 6, got 7"),
    ("get_int", "float", {}, "expected an integer, got float32 0.5"),
    ("get_int", "bool", {}, "expected an integer, got bool True"),
    ("get_int", "str", {}, "expected an integer, got string 'seven'"),
    ("get_int", "ints", {}, "expected an integer, got array of 2 int16"),
    ("get_float", "nan", {}, "expected a finite number, got nan"),
    ("get_float", "inf", {}, "expected a finite number, got inf"),
    ("get_float", "str", {}, "expected a finite number, got string 'seven'"),
    ("get_float", "float", {"minimum": 1.0}, "expected a finite number of at least 1.0, got 0.5"),
    ("get_bool", "int", {}, "expected a boolean, got uint32 7"),
    ("get_bool", "bool 2", {}, "expected a boolean, 0 or 1, got the byte 2"),
    ("get_str", "int", {}, "expected a string, got uint32 7"),
    ("get_str", "bad str", {}, "expected UTF-8, got invalid start byte at byte 1"),
    ("get_strings", "ints", {}, "expected an array of strings, got array of 2 int16"),
    ("get_strings", "str", {}, "expected an array of strings, got string 'seven'"),
    ("get_strings", "bad strs", {}, "string 1: expected UTF-8, got unexpected end of data"),
    ("get_ints", "floats", {}, "expected an array of integers, got array of 2 float32"),
    ("get_ints", "int", {}, "expected an array of integers, got uint32 7"),
    ("get_ints", "big", {}, "expected an array of integers below 2.63, got 9223372036854775808"),
    ("get_floats", "bytes", {}, "expected an array of floats, got array of 2 uint8"),
    ("get_floats", "nans", {}, "expected an array of floats without NaN, got NaN at index 1"),
    ("__getitem__", "bools", {}, "expected a boolean, 0 or 1, got the byte 3"),
]


@pytest.mark.parametrize(("getter", "key", "bounds", "text"), REFUSED)
def test_getters_refuse_by_name(getter: str, key: str, bounds: dict[str, float], text: str) -> None:
    with pytest.raises(ModelFileError, match=f"model.gguf: key '{key}': {text}"):
        getattr(metadata_of_every_kind(), getter)(key, **bounds)


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[GGUFFile]:
    with open_gguf(write_tiny_gguf(tmp_path / "tiny.gguf", n_layers=1)) as file:
        yield file


def test_tensor_bytes_are_read_only_views(tiny: GGUFFile) -> None:
    first = tiny.tensor_bytes("output_norm.weight")
    assert not first.flags.writeable
    assert not first.flags.owndata
    assert np.shares_memory(first, tiny.tensor_bytes("output_norm.weight"))
    with pytest.raises(ValueError, match="cannot set WRITEABLE"):
        first.setflags(write=True)


def test_a_missing_tensor_is_named(tiny: GGUFFile) -> None:
    with pytest.raises(ModelFileError, match=r"tiny\.gguf: tensor 'nobody' is missing"):
        tiny.tensor_bytes("nobody")


def test_views_outlive_close(tiny: GGUFFile) -> None:
    view = tiny.tensor_bytes("output_norm.weight")
    before = view.tobytes()
    name = tiny.metadata.get_str("general.name")
    tiny.close()
    tiny.close()
    gc.collect()
    assert view.tobytes() == before
    assert name == "tiny llama F32"
    with pytest.raises(RequestError, match="closed"):
        tiny.tensor_bytes("output_norm.weight")
    with pytest.raises(RequestError, match="closed"):
        tiny.metadata.get_str("general.name")


@pytest.mark.skipif(not MAPS.exists(), reason="no /proc/self/maps on this system")
def test_close_lets_go_of_the_file(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", n_layers=1)
    file = open_gguf(path)
    assert str(path) in MAPS.read_text()
    file.close()
    assert str(path) not in MAPS.read_text()
