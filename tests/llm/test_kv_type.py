"""kv_type: what the KV cache is held in; what it takes of memory, and what is refused."""

from pathlib import Path

import pytest

from m40llm.device.cpu.ops import CpuOps
from m40llm.errors import RequestError
from m40llm.gguf import open_gguf
from m40llm.llm.plan import plan_memory
from m40llm.model.hparams import HParams
from m40llm.model.kv_cache import cache_bytes, checked_kv_type
from m40llm.testing import write_tiny_gguf


def test_a_plan_counts_the_cache_in_its_type(tmp_path: Path) -> None:
    """34 bytes for 32 elements, in place of two or (on cpu) four bytes each."""
    path = write_tiny_gguf(tmp_path / "tiny.gguf", head_dim=64)
    with open_gguf(path) as file:
        hp = HParams.from_gguf(file)
        plain, quantised = (
            plan_memory(CpuOps(), file, hp, 100, kv_type=kv_type) for kv_type in ("f16", "q8_0")
        )
    assert plain.cache == 2 * 2 * 2 * 100 * 64 * 4
    assert quantised.cache * 32 * 4 == plain.cache * 34
    assert quantised.total - quantised.cache == plain.total - plain.cache
    assert cache_bytes(hp, 1, 100, 2) * 34 == quantised.cache * 2 * 32


def test_heads_that_are_no_whole_number_of_blocks(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", head_dim=80)
    with open_gguf(path) as file, pytest.raises(RequestError, match=r"expected .f16.*is 80"):
        plan_memory(CpuOps(), file, HParams.from_gguf(file), None, kv_type="q8_0")


def test_names() -> None:
    assert [checked_kv_type(name) for name in ("f16", "q8_0")] == ["f16", "q8_0"]
    for name in ("q4_0", None, 8):
        with pytest.raises(RequestError, match=r"^kv_type: expected f16, q8_0, got"):
            checked_kv_type(name)
