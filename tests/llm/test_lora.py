"""Requests with adapters: each its own, and the model as it was for those without."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m40llm import LLM, SamplingParams
from m40llm.device.cpu.ops import CpuOps
from m40llm.errors import DeviceError, ModelFileError, RequestError
from m40llm.testing import write_tiny_gguf
from m40llm.testing.adapters import write_adapter

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
IDS = [5, 9, 200, 31, 7]
MATRICES = [f"blk.{layer}.{part}.weight" for layer in range(2) for part in ("attn_v", "ffn_down")]
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_gguf(tmp_path / "tiny.gguf", tensor_type="Q8_0", chat_template=TEMPLATE)


@pytest.fixture
def llm(model: Path) -> Iterator[LLM]:
    with LLM.load(model, device="cpu") as llm:
        for seed, name in enumerate(("first", "second")):
            write_adapter(model.with_name(f"{name}.gguf"), model, MATRICES, seed=seed)
        yield llm


def ids(llm: LLM, lora: str | None) -> list[int]:
    return llm.generate(IDS, GREEDY, lora=lora).ids


def test_each_request_has_its_own(llm: LLM, model: Path) -> None:
    plain = ids(llm, None)
    first = llm.load_lora(model.with_name("first.gguf"))
    assert first == "first"
    second = llm.load_lora(model.with_name("second.gguf"), name="other", scale=2)
    found = [ids(llm, name) for name in (first, second, None, first, second)]
    assert found[0] == found[3] != plain
    assert found[1] == found[4] not in (plain, found[0])
    assert found[2] == plain


def test_no_effect_at_scale_0(llm: LLM, model: Path) -> None:
    name = llm.load_lora(model.with_name("first.gguf"), scale=0)
    assert ids(llm, name) == ids(llm, None)


def test_the_cache_of_another_adapter_is_not_used(llm: LLM, model: Path) -> None:
    """Chat goes on from what is cached; keys and values of another adapter are others."""
    name = llm.load_lora(model.with_name("first.gguf"))
    messages = [{"role": "user", "content": "one two three four five six"}]
    alone = llm.chat(messages, GREEDY, lora=name).ids
    llm.chat(messages, GREEDY)
    assert llm.chat(messages, GREEDY, lora=name).ids == alone


def test_logits_are_the_models(llm: LLM, model: Path) -> None:
    plain = llm.logits(IDS)
    ids(llm, llm.load_lora(model.with_name("first.gguf")))
    np.testing.assert_array_equal(llm.logits(IDS), plain)


def test_an_adapter_decodes_on_the_host(model: Path) -> None:
    """Where the device has steps of its own, which do not know it: with them, the same tokens."""
    write_adapter(model.with_name("first.gguf"), model, MATRICES)
    with LLM.load(model, device="cpu") as cpu:
        wanted = ids(cpu, cpu.load_lora(model.with_name("first.gguf")))
    with LLM.load(model, device="emulator", decode="eager", max_seq_len=32) as llm:
        short = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
        name = llm.load_lora(model.with_name("first.gguf"))
        assert llm.generate(IDS, short, lora=name).ids == wanted[:3]


def test_no_room(llm: LLM, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused, to the byte, before anything is there."""
    path, taken = model.with_name("first.gguf"), []
    matrix, empty = CpuOps.matrix, CpuOps.empty

    def counted_matrix(self: CpuOps, *args: Any) -> Any:
        taken.append(args[-1].nbytes)
        return matrix(self, *args)

    def counted_empty(self: CpuOps, *args: Any) -> Any:
        taken.append(empty(self, *args).nbytes)
        return empty(self, *args)

    monkeypatch.setattr(CpuOps, "matrix", counted_matrix)
    monkeypatch.setattr(CpuOps, "empty", counted_empty)
    llm.load_lora(path, name="as often as one likes")
    needed = sum(taken)
    taken.clear()
    monkeypatch.setattr(CpuOps, "free_bytes", lambda self: needed - 1)
    told = f"the adapter needs {needed / 1e6:.1f} MB; device 'cpu' has .* MB free beside the model"
    with pytest.raises(DeviceError, match=told):
        llm.load_lora(path)
    assert not taken
    monkeypatch.setattr(CpuOps, "free_bytes", lambda self: needed)
    assert llm.load_lora(path) == "first"


def test_refused_by_name(llm: LLM, model: Path) -> None:
    with pytest.raises(RequestError, match="none was loaded"):
        llm.generate(IDS, GREEDY, lora="nobody")
    llm.load_lora(model.with_name("first.gguf"))
    with pytest.raises(RequestError, match="'first'"):
        llm.generate(IDS, GREEDY, lora="nobody")
    with pytest.raises(RequestError, match="is there already"):
        llm.load_lora(model.with_name("first.gguf"))
    for scale in (float("nan"), 1e5, "2"):
        with pytest.raises(RequestError, match="scale: expected"):
            llm.load_lora(model.with_name("second.gguf"), scale=scale)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="lora: expected the name"):
        llm.generate(IDS, GREEDY, lora=["first"])  # type: ignore[call-overload]
    with pytest.raises(RequestError, match="path: expected"):
        llm.load_lora(None)  # type: ignore[arg-type]
    with pytest.raises(ModelFileError, match="adapter"):
        llm.load_lora(model)
    assert ids(llm, None)


def test_of_several_files_the_one_that_does_not_fit_is_named(
    llm: LLM, model: Path, tmp_path: Path
) -> None:
    wider = write_tiny_gguf(tmp_path / "wider.gguf", n_embd=128)
    with (
        LLM.load(wider, device="cpu") as other,
        pytest.raises(ModelFileError, match=r"first\.gguf: tensor .*a model of another size"),
    ):
        other.load_lora(model.with_name("first.gguf"))
