"""Broken files, one a line of the tables: each is refused with a text that says what and where."""

import os
import struct
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as Tensor
from gguf import GGUFValueType as Value

from m40llm.errors import ModelFileError, UnsupportedModelError
from m40llm.gguf import open_gguf
from m40llm.gguf.split import _parse
from m40llm.testing import array_field, build_gguf_bytes, field, gguf_string, tensor_info

ARCH = field("general.architecture", Value.STRING, "llama")
F32_4 = tensor_info("t", [4], Tensor.F32, 0)
SOUND = build_gguf_bytes([ARCH], [F32_4], bytes(16))
BIG_ENDIAN = b"GGUF" + struct.pack(">IQQ", 3, 0, 0)
HUGE = 2**63


def with_tensor(dims: list[int], type: int = Tensor.F32, offset: int = 0) -> bytes:
    return build_gguf_bytes([ARCH], [tensor_info("t", dims, type, offset)], bytes(4096))


def with_alignment(value: bytes) -> bytes:
    return build_gguf_bytes([value], [F32_4], bytes(16))


def alignment(value: int) -> bytes:
    return field("general.alignment", Value.UINT32, value)


def raw_value(type: int, payload: bytes) -> bytes:
    """A file with one key `k` whose value's bytes are given."""
    return build_gguf_bytes([gguf_string("k") + struct.pack("<I", type) + payload])


BROKEN_HEADERS = {
    "not GGUF": (b"PK\3\4" + bytes(60), r"start with b'GGUF', got b'PK\\x03\\x04'"),
    "one byte": (b"G", "magic 'GGUF' at offset 0: expected 4 bytes, but only 1"),
    "magic alone": (b"GGUF", "GGUF version at offset 4: expected 4 bytes, but only 0"),
    "version alone": (SOUND[:8], "count of tensors at offset 8"),
    "header without counts": (
        SOUND[:20],
        "count of tensors at offset 8: the file claims 1, but the 4 bytes",
    ),
    "too many tensors": (
        build_gguf_bytes([ARCH], n_tensors=2**40),
        r"count of tensors at offset 8: the file claims 1099511627776",
    ),
    "too many keys": (
        build_gguf_bytes([ARCH], n_fields=HUGE),
        r"count of metadata keys at offset 16: the file claims 9223372036854775808",
    ),
    "one key too many": (
        build_gguf_bytes([ARCH], n_fields=2),
        "key 1 of 2 at offset 69: expected a name",
    ),
}
BROKEN_FIELDS = {
    "key longer than the file": (
        build_gguf_bytes([gguf_string("k", HUGE)], data=bytes(20)),
        "key 0 of 1 at offset 32: expected 9223372036854775808 bytes",
    ),
    "key not UTF-8": (
        build_gguf_bytes([field(b"\xff\xfe", Value.UINT8, 1)]),
        "key 0 of 1 at offset 24: not UTF-8",
    ),
    "duplicate key": (build_gguf_bytes([ARCH, ARCH]), "'general.architecture' at offset .* twice"),
    "unknown value type": (
        raw_value(13, bytes(8)),
        "value of key 'k' at offset 33: value type 13 is unknown, expected 0 to 12",
    ),
    "string longer than the file": (
        raw_value(Value.STRING, struct.pack("<Q", HUGE)),
        "value of key 'k' at offset 45: expected 9223372036854775808 bytes",
    ),
    "array longer than the file": (
        raw_value(Value.ARRAY, struct.pack("<IQ", Value.FLOAT32, 2**40)),
        "item count of value of key 'k' at offset 41: the file claims 1099511627776",
    ),
    "array that would overflow": (
        raw_value(Value.ARRAY, struct.pack("<IQ", Value.UINT64, 2**61 + 1)),
        "item count of value of key 'k'",
    ),
    "array of more strings than fit": (
        raw_value(Value.ARRAY, struct.pack("<IQ", Value.STRING, 2**40)),
        "item count of value of key 'k' at offset 41: .* hold at most",
    ),
    "array of unknown items": (
        raw_value(Value.ARRAY, struct.pack("<IQ", 99, 1) + bytes(8)),
        "items of value of key 'k' at offset 37: value type 99 is unknown",
    ),
    "nested arrays": (
        raw_value(Value.ARRAY, struct.pack("<IQIQ", Value.ARRAY, 1, Value.UINT8, 0)),
        "value of key 'k' at offset 37: expected numbers or strings, got nested arrays",
    ),
    "strings that end early": (
        build_gguf_bytes([array_field("k", Value.STRING, ["a" * 40, "b"], 3)], alignment=1),
        "string 2 of 3, value of key 'k' at offset 106: the file ends at 106",
    ),
    "a string array's string past the end": (
        raw_value(Value.ARRAY, struct.pack("<IQQ", Value.STRING, 1, 2**64 - 1)),
        "string 0 of 1, value of key 'k' at offset 49: expected 18446744073709551615 bytes",
    ),
    "alignment 0": (with_alignment(alignment(0)), "'general.alignment': .* at least 1|from 1 to"),
    "alignment 48": (with_alignment(alignment(48)), "expected a power of two, got 48"),
    "alignment beyond the file": (with_alignment(alignment(2**31)), "tensor 't': .* the file ends"),
    "alignment a string": (
        with_alignment(field("general.alignment", Value.STRING, "32")),
        "'general.alignment': expected an integer .*, got string '32'",
    ),
    "alignment negative": (
        with_alignment(field("general.alignment", Value.INT32, -32)),
        "'general.alignment': expected .*, got -32",
    ),
}
BROKEN_TENSORS = {
    "name longer than the file": (
        build_gguf_bytes([], [gguf_string("t", HUGE)], data=bytes(64)),
        "name of tensor 0 of 1 at offset 32",
    ),
    "name not UTF-8": (
        build_gguf_bytes([], [tensor_info(b"\xff", [4], Tensor.F32, 0)], bytes(16)),
        "name of tensor 0 of 1 at offset 24: not UTF-8",
    ),
    "duplicate tensor": (
        build_gguf_bytes([], [F32_4, tensor_info("t", [4], Tensor.F32, 32)], bytes(64)),
        "tensor 't': the file has it twice",
    ),
    "no dimensions": (with_tensor([]), "tensor 't': expected 1 to 4 dimensions, got 0"),
    "five dimensions": (with_tensor([1] * 5), "tensor 't': expected 1 to 4 dimensions, got 5"),
    "a thousand million dimensions": (
        build_gguf_bytes([], [tensor_info("t", [4], Tensor.F32, 0, n_dims=10**9)], bytes(64)),
        "tensor 't': expected 1 to 4 dimensions, got 1000000000",
    ),
    "dimension 0": (with_tensor([4, 0]), r"tensor 't': expected no dimension of 0, got \[4, 0\]"),
    "dimensions that overflow": (
        with_tensor([2**32, 2**32]),
        r"tensor 't': F32\[4294967296, 4294967296\] needs 73786976294838206464 bytes",
    ),
    "dimensions that overflow to a little": (
        with_tensor([2**63 + 2, 2]),
        "tensor 't': .* needs 73786976294838206480 bytes",
    ),
    "row no whole block": (
        with_tensor([33, 2], Tensor.Q8_0),
        "tensor 't': row length 33: expected a multiple of Q8_0's block of 32",
    ),
    "unknown tensor type": (with_tensor([4], 4), "tensor 't': type 4 is unknown; known are F32"),
    "absurd tensor type": (with_tensor([4], 2**32 - 1), "tensor 't': type 4294967295 is unknown"),
    "misaligned offset": (with_tensor([4], offset=4), "multiple of the alignment 32, got 4"),
    "offset beyond the end": (
        with_tensor([4], offset=8192),
        r"tensor 't': F32\[4\] needs 16 bytes at offset 8320, but the file ends at 4224",
    ),
    "offset that overflows": (with_tensor([4], offset=2**64 - 32), "but the file ends at 4224"),
    "data cut by one byte": (SOUND[:-1], r"tensor 't': F32\[4\] needs 16 bytes at offset 128"),
    "overlapping tensors": (
        build_gguf_bytes(
            [],
            [tensor_info("a", [16], Tensor.F32, 0), tensor_info("b", [4], Tensor.F32, 32)],
            bytes(64),
        ),
        "tensor 'b' at offset 128 overlaps tensor 'a', which ends at 160",
    ),
}
UNSUPPORTED = {
    "big-endian": (BIG_ENDIAN, "a big-endian GGUF file, expected a little-endian one"),
    "version 1": (build_gguf_bytes(version=1), r"version 1 at offset 4: expected 2 or 3 \(1 was"),
    "version 0": (build_gguf_bytes(version=0), "version 0 at offset 4: expected 2 or 3"),
    "version 4": (build_gguf_bytes(version=4), "version 4 at offset 4: expected 2 or 3"),
    "GGML's older format": (b"tjgg" + bytes(60), "not GGUF but its forerunner b'ggjt'"),
    "nested arrays": BROKEN_FIELDS["nested arrays"],
    "unknown tensor type": BROKEN_TENSORS["unknown tensor type"],
}
BROKEN = BROKEN_HEADERS | BROKEN_FIELDS | BROKEN_TENSORS | UNSUPPORTED


@pytest.mark.parametrize(("data", "text"), BROKEN.values(), ids=BROKEN)
def test_broken_bytes_are_refused_by_name(data: bytes, text: str) -> None:
    with pytest.raises(ModelFileError, match=text) as caught:
        _parse(data, "model.gguf")
    assert str(caught.value).startswith("model.gguf: ")
    assert len(str(caught.value)) < 1500


@pytest.mark.parametrize(("data", "text"), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_sound_but_unsupported_files_say_so(data: bytes, text: str) -> None:
    with pytest.raises(UnsupportedModelError, match=text):
        _parse(data)


def test_every_truncation_is_refused() -> None:
    assert _parse(SOUND).tensors["t"].n_bytes == 16
    for n_bytes in range(len(SOUND)):
        with pytest.raises(ModelFileError):
            _parse(SOUND[:n_bytes])


def test_names_in_error_texts_are_cut_to_length() -> None:
    name = "k" * 100_000
    with pytest.raises(ModelFileError, match="twice") as caught:
        _parse(build_gguf_bytes([field(name, Value.UINT8, 1)] * 2))
    assert len(str(caught.value)) < 300


def test_paths_that_are_no_file(tmp_path: Path) -> None:
    empty = tmp_path / "empty.gguf"
    empty.touch()
    pipe = tmp_path / "pipe.gguf"
    os.mkfifo(pipe)
    cases = {
        empty: "the file is empty",
        tmp_path: "a directory, expected a GGUF file",
        tmp_path / "missing.gguf": "missing.gguf: cannot be read: No such file",
        pipe: "not a regular file",
        tmp_path / "nul\0.gguf": "cannot be read: embedded null",
        tmp_path / ("long" * 100): "cannot be read: File name too long",
    }
    for path, text in cases.items():
        with pytest.raises(ModelFileError, match=text):
            open_gguf(path)


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret.gguf"
    path.write_bytes(SOUND)

    def deny(*_: object) -> None:  # chmod would not keep root out
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", deny)
    with pytest.raises(ModelFileError, match=r"secret\.gguf: cannot be read: Permission denied"):
        open_gguf(path)
