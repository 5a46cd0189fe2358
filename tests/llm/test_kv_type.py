"""kv_type: what the KV cache is held in; what it takes of memory, and what is refused."""

from pathlib import Path

import pytest

from m40llm import LLM, SamplingParams
from m40llm.device.cpu.ops import CpuOps
from m40llm.device.ops import Q8Cache
from m40llm.errors import RequestError
from m40llm.gguf import open_gguf
from m40llm.llm.fit import plan_memory
from m40llm.model.hparams import HParams
from m40llm.model.kv_cache import cache_bytes, checked_kv_type
from m40llm.testing import write_tiny_gguf
from m40llm.testing.greedy import assert_same_greedy

DEVICES = [pytest.param("emulator"), pytest.param("cuda", marks=pytest.mark.gpu)]
IDS = [1, 7, 9, 20, 33, 4, 5, 6, 7, 8]


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
    with pytest.raises(RequestError, match=r"^kv_type: expected"):
        LLM.load("no-such-file.gguf", kv_type="q8")


def test_a_loaded_model_holds_what_was_planned(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", head_dim=32)
    with LLM.load(path, device="cpu", kv_type="q8_0", speculate="ngram") as llm:
        kv = llm.transformer.kv
        assert isinstance(kv.k, Q8Cache)
        parts = (part for cache in (kv.k, kv.v) for part in (cache.quants, cache.scales))
        assert llm.plan.cache == sum(part.nbytes for part in parts)
        with LLM.load(path, device="cpu", kv_type="q8_0") as plain:  # rolled back where refused
            assert_same_greedy(llm, plain, IDS, 24, gap=0.05)


@pytest.mark.parametrize("device", DEVICES)
def test_tokens_are_the_cpus(device: str, tmp_path: Path) -> None:
    """A quant that rounds the other way moves logits by less than all of an FP16 cache's do."""
    path = write_tiny_gguf(tmp_path / "tiny.gguf", head_dim=32, context_length=64)
    of = {"kv_type": "q8_0"}
    with LLM.load(path, device="cpu", **of) as cpu, LLM.load(path, device=device, **of) as llm:
        assert_same_greedy(llm, cpu, IDS, 12, gap=0.05)


def test_the_decode_program_does_not_read_it(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", head_dim=32, context_length=32)
    told = (
        r"decode: expected 'host' or 'eager' or 'graph' on device 'emulator', got 'persistent': "
        "the KV cache is in q8_0"
    )
    with pytest.raises(RequestError, match=told):
        LLM.load(path, device="emulator", kv_type="q8_0", decode="persistent")


def test_a_longer_request_before_leaves_nothing(tmp_path: Path) -> None:
    """The same request gives the same tokens, whatever lay in the cache."""
    path = write_tiny_gguf(tmp_path / "tiny.gguf", head_dim=32)
    greedy = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    with LLM.load(path, device="cpu", kv_type="q8_0") as llm:
        first = llm.generate(IDS, greedy).ids
        llm.generate(IDS[::-1], greedy)
        assert llm.generate(IDS, greedy).ids == first
