"""A small sound file, its bytes changed: nothing comes of it but success or ModelFileError."""

import struct
from collections.abc import Callable
from contextlib import suppress

import numpy as np
from gguf import GGMLQuantizationType as Tensor
from gguf import GGUFValueType as Value
from hypothesis import given, settings
from hypothesis import strategies as st

from m40llm.errors import ModelFileError
from m40llm.gguf.blocks import row_bytes
from m40llm.gguf.split import _parse
from m40llm.model.hparams import HParams
from m40llm.testing import array_field, build_gguf_bytes, field, tensor_info

INTERESTING = (0, 1, 2, 7, 8, 31, 32, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1)
INTEGERS = [struct.pack("<I", value) for value in INTERESTING if value < 2**32]
INTEGERS += [struct.pack("<Q", value) for value in (*INTERESTING, 2**63, 2**64 - 1)]
FLOATS = [struct.pack("<f", value) for value in (0.0, -1.0, 1e38, float("inf"), float("nan"))]


def small_file() -> bytes:
    """About 2 KB with every value type and the keys that HParams reads, nearly all structure."""
    counts = {
        "context_length": 64,
        "block_count": 2,
        "embedding_length": 64,
        "feed_forward_length": 96,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.key_length": 16,
        "rope.dimension_count": 16,
        "rope.scaling.original_context_length": 32,
        "attention.sliding_window": 16,
    }
    numbers = {"attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 1e4}
    numbers |= {"rope.scaling.factor": 2.0, "rope.scaling.yarn_beta_fast": 32.0}
    types: list[tuple[Tensor, list[int]]] = [
        (Tensor.F32, [4, 3]),
        (Tensor.F16, [8]),
        (Tensor.Q8_0, [32, 2]),
        (Tensor.Q4_K, [256]),
    ]
    fields = [
        field("general.architecture", Value.STRING, "llama"),
        field("general.alignment", Value.UINT32, 32),
        *(field(f"llama.{key}", Value.UINT32, count) for key, count in counts.items()),
        *(field(f"llama.{key}", Value.FLOAT32, number) for key, number in numbers.items()),
        field("llama.rope.scaling.type", Value.STRING, "yarn"),
        array_field("tokenizer.ggml.tokens", Value.STRING, ["<s>", "", "é", "world"]),
        array_field("tokenizer.ggml.scores", Value.FLOAT32, [0.0, -1.0, -2.0, -3.0]),
        *(field(type_.name, type_, 1) for type_ in Value if type_ not in (8, 9)),
        *(array_field(f"[{type_.name}]", type_, [1]) for type_ in Value if type_ not in (8, 9)),
        field("split.count", Value.UINT16, 1),
    ]
    tensors, data = [], b""
    for type_, dims in types:
        tensors.append(tensor_info(f"t.{type_.name}", dims, type_, len(data)))
        n_bytes = row_bytes(type_, dims[0]) * int(np.prod(dims[1:], dtype=int))
        data += bytes(n_bytes + -n_bytes % 32)
    return build_gguf_bytes(fields, tensors, data)


SMALL = small_file()
OFFSETS = st.integers(0, len(SMALL))
Mutation = Callable[[bytes], bytes]


def overwrite(at: int, piece: bytes) -> Mutation:
    return lambda data: data[:at] + piece + data[at + len(piece) :]


def insert(at: int, piece: bytes) -> Mutation:
    return lambda data: data[:at] + piece + data[at:]


def flip(at: int, mask: int) -> Mutation:
    def change(data: bytes) -> bytes:
        return data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :] if at < len(data) else data

    return change


def delete(at: int, n_bytes: int) -> Mutation:
    return lambda data: data[:at] + data[at + n_bytes :]


def truncate(at: int) -> Mutation:
    return lambda data: data[:at]


def copy(source: int, at: int, n_bytes: int) -> Mutation:
    return lambda data: data[:at] + data[source : source + n_bytes] + data[at + n_bytes :]


MUTATIONS = st.one_of(
    st.builds(overwrite, OFFSETS, st.sampled_from(INTEGERS + FLOATS)),
    st.builds(flip, OFFSETS, st.integers(1, 255)),
    st.builds(insert, OFFSETS, st.binary(min_size=1, max_size=16)),
    st.builds(delete, OFFSETS, st.integers(1, 64)),
    st.builds(copy, OFFSETS, OFFSETS, st.integers(1, 64)),
    st.builds(truncate, OFFSETS),
)


def read_all_of_it(data: bytes) -> bool:
    """Whether the file opened. Anything but ModelFileError gets out of here, and fails."""
    try:
        file = _parse(data)
    except ModelFileError:
        return False
    for key in file.metadata:
        with suppress(ModelFileError):
            file.metadata[key]
    for name, tensor in file.tensors.items():
        assert file.tensor_bytes(name).size == tensor.n_bytes
        assert 0 < tensor.n_elements < 2**40
    try:
        hparams = HParams.from_gguf(file)
    except ModelFileError:
        return True
    n_cached = hparams.n_layers * hparams.kv_dim * hparams.context_length
    assert 0 < max(n_cached, hparams.q_dim * hparams.n_embd) < 2**63
    return True


def test_the_file_is_sound_as_it_is() -> None:
    assert len(SMALL) < 4096
    assert read_all_of_it(SMALL)
    assert HParams.from_gguf(_parse(SMALL)).rope.scaling == "yarn"


def test_every_byte_changed() -> None:
    """Each byte of the file in turn, three ways: none may matter more than the reader knows."""
    n_opened = 0
    for at in range(len(SMALL)):
        for mask in (0x01, 0x80, 0xFF):
            n_opened += read_all_of_it(flip(at, mask)(SMALL))
    assert 0 < n_opened < 3 * len(SMALL)


@settings(max_examples=max(2500, settings.default.max_examples))  # type: ignore[union-attr]
@given(st.lists(MUTATIONS, min_size=1, max_size=4))
def test_mutated_files_open_or_are_refused(mutations: list[Mutation]) -> None:
    data = SMALL
    for mutate in mutations:
        data = mutate(data)
    read_all_of_it(data)


@settings(max_examples=500)
@given(st.binary(max_size=256))
def test_random_bytes_after_a_sound_header(data: bytes) -> None:
    read_all_of_it(b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + data)
