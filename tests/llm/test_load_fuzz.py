"""Damaged bytes of a whole model file: loading it succeeds or raises ModelFileError, never else."""

import contextlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m40llm.device.cpu.ops import CpuOps
from m40llm.errors import DeviceError, ModelFileError
from m40llm.gguf.split import _parse
from m40llm.llm.fit import plan_memory
from m40llm.model.arch import architecture_of
from m40llm.model.check_tensors import check_tensors
from m40llm.model.hparams import HParams
from m40llm.model.weights import load_weights
from m40llm.testing import write_tiny_gguf
from m40llm.text import build_tokenizer

INTERESTING = [0, 1, 2**7, 2**8 - 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1]


def load(data: bytes) -> None:
    """All that LLM.load does before the first forward pass."""
    file = _parse(data)
    arch, hp = architecture_of(file), HParams.from_gguf(file)
    check_tensors(file, arch, hp)
    tokenizer = build_tokenizer(file)
    plan_memory(CpuOps(), file, hp, None)
    load_weights(CpuOps(), file, arch, hp)
    tokenizer.decode(tokenizer.encode("Hello <s> wörld", add_bos=False, parse_special=True))


@pytest.fixture(scope="module", params=["spm", "bpe"])
def model_bytes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path: Path = tmp_path_factory.mktemp("fuzz") / "tiny.gguf"
    return write_tiny_gguf(
        path, n_layers=1, n_embd=32, n_ff=32, tokenizer=request.param
    ).read_bytes()


@settings(max_examples=1500)
@given(data=st.data())
def test_mutated_files(model_bytes: bytes, data: st.DataObject) -> None:
    """One to four changes, most of them in the header, where they mean something."""
    mutated = bytearray(model_bytes)
    header_end = model_bytes.find(b"token_embd.weight") + 2000
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, header_end))
        change = data.draw(st.sampled_from(["byte", "integer", "cut", "float"]))
        if change == "byte":
            mutated[at : at + 1] = bytes([data.draw(st.integers(0, 255))])
        elif change == "integer":
            value = data.draw(st.sampled_from(INTERESTING))
            mutated[at : at + 8] = value.to_bytes(8, "little")
        elif change == "float":
            value = data.draw(st.floats(width=32))
            mutated[at : at + 4] = np.float32(value).tobytes()
        else:
            del mutated[at : at + data.draw(st.integers(1, 64))]
    with contextlib.suppress(ModelFileError, DeviceError):  # DeviceError: sound, but too large
        load(bytes(mutated))


def test_the_undamaged_file_loads(model_bytes: bytes) -> None:
    load(model_bytes)


def test_a_broken_chat_template_does_not_stop_loading(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "t.gguf", tokenizer="bpe", chat_template="{% for %}")
    tokenizer = build_tokenizer(_parse(path.read_bytes()))
    with pytest.raises(ModelFileError, match=r"tokenizer\.chat_template"):
        tokenizer.apply_chat_template([{"role": "user", "content": "hi"}])
