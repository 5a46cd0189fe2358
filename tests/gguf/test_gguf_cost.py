"""What opening costs: time for a large vocabulary, memory for files that claim much."""

import struct
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Tensor
from gguf import GGUFValueType as Value

from m40llm.errors import ModelFileError
from m40llm.gguf import open_gguf
from m40llm.gguf.split import _parse
from m40llm.testing import array_field, build_gguf_bytes, gguf_string, tensor_info

ARRAY = gguf_string("k") + struct.pack("<I", Value.ARRAY)
CLAIMS = {
    "keys": build_gguf_bytes([gguf_string("k")], n_fields=2**40),
    "tensors": build_gguf_bytes(n_tensors=2**40),
    "key length": build_gguf_bytes([gguf_string("k", 2**40)]),
    "numbers": build_gguf_bytes([ARRAY + struct.pack("<IQ", Value.FLOAT32, 2**40)]),
    "strings": build_gguf_bytes([ARRAY + struct.pack("<IQ", Value.STRING, 2**40)]),
    "string length": build_gguf_bytes([ARRAY + struct.pack("<IQQ", Value.STRING, 1, 2**40)]),
    "dimensions": build_gguf_bytes([], [tensor_info("t", [4], Tensor.F32, 0, n_dims=2**31)]),
    "elements": build_gguf_bytes([], [tensor_info("t", [2**40], Tensor.F32, 0)], bytes(64)),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_claims_allocate_nothing(claim: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ModelFileError):
            _parse(CLAIMS[claim])
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()


def test_large_arrays_that_are_really_there(tmp_path: Path) -> None:
    """A million numbers and 100,000 strings; opening keeps 8 bytes a string, no values."""
    path = tmp_path / "large.gguf"
    strings = [f"token {index}" for index in range(100_000)]
    numbers = np.arange(1_000_000, dtype=np.float32)
    head = gguf_string("numbers") + struct.pack("<IIQ", Value.ARRAY, Value.FLOAT32, numbers.size)
    path.write_bytes(
        build_gguf_bytes([array_field("s", Value.STRING, strings), head + numbers.tobytes()])
    )
    tracemalloc.start()
    with open_gguf(path) as file:
        n_traced = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert n_traced < 2_000_000
        assert file.metadata.get_strings("s") == strings
        assert np.array_equal(file.metadata.get_floats("numbers"), numbers)


def test_a_vocabulary_of_128k_tokens_opens_in_half_a_second(shared_data: Path) -> None:
    """CPU seconds, the best of three: other tests run on the same cores at the same time."""
    path = shared_data / "vocab" / "ggml-vocab-llama-bpe.gguf"
    if not path.exists():
        pytest.skip(f"no {path.name} in {path.parent}")
    seconds = []
    for _ in range(3):
        start = time.process_time()
        with open_gguf(path) as file:
            n_tokens = len(file.metadata.get_strings("tokenizer.ggml.tokens"))
            n_merges = len(file.metadata.get_strings("tokenizer.ggml.merges"))
        seconds.append(time.process_time() - start)
    assert (n_tokens, n_merges) == (128_256, 280_147)
    assert min(seconds) < 0.5
