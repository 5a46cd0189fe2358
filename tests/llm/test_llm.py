"""LLM: loading, generating, streaming, chatting, closing; and what it refuses."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m40llm import LLM, SamplingParams
from m40llm.errors import DeviceError, ModelFileError, RequestError
from m40llm.llm import TextStream
from m40llm.testing import write_tiny_gguf

GREEDY = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True)
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return write_tiny_gguf(folder / "tiny.gguf", tokenizer="bpe", chat_template=TEMPLATE)


@pytest.fixture(scope="module")
def llm(path: Path) -> LLM:
    return LLM.load(path)


def test_text_is_the_decoded_ids(llm: LLM) -> None:
    completion = llm.generate("hello", GREEDY)
    assert completion.prompt_ids == llm.tokenizer.encode("hello")
    assert completion.text == llm.tokenizer.decode(completion.ids, skip_special=True)
    assert completion.stop_reason == "length"
    assert completion.logprobs is None
    assert completion.timings.generated_tokens == len(completion.ids) == 10
    assert completion.timings.tokens_per_s > 0


def test_one_text_ids_and_lists_of_either(llm: LLM) -> None:
    ids = llm.tokenizer.encode("hello")
    one = llm.generate("hello", GREEDY)
    assert llm.generate(ids, GREEDY).ids == one.ids
    assert llm.generate(np.array(ids), GREEDY).ids == one.ids
    many = llm.generate(["hello", ids, "other"], GREEDY)
    assert [c.ids for c in many[:2]] == [one.ids, one.ids]


def test_stream_is_generate_in_pieces(llm: LLM) -> None:
    whole = llm.generate("hello", GREEDY)
    with llm.stream("hello", GREEDY) as stream:
        items = list(stream)
    assert [item.token_id for item in items] == whole.ids
    assert "".join(item.text for item in items) == whole.text
    assert all(item.logprob <= 0 for item in items)
    assert stream.completion.text == whole.text


def test_stop_string_wherever_it_stands(llm: LLM) -> None:
    text = llm.generate("hello", GREEDY).text
    for at in range(1, len(text) - 2):
        stop = text[at : at + 2]
        params = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True, stop=stop)
        completion = llm.generate("hello", params)
        assert completion.text == text[: text.find(stop)]
        assert completion.stop_reason == "stop"


def test_logits_of_more_tokens_than_one_forward_takes(llm: LLM) -> None:
    ids = np.random.default_rng(0).integers(0, llm.hparams.vocab_size, llm.max_seq_len).tolist()
    logits = llm.logits(ids)
    assert logits.shape == (len(ids), llm.hparams.vocab_size)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits[:50], llm.logits(ids[:50]), atol=1e-4)


def test_logits_of_a_text_are_those_of_its_tokens(llm: LLM) -> None:
    text = "once upon a time"
    np.testing.assert_array_equal(llm.logits(text), llm.logits(llm.tokenizer.encode(text)))


def test_chat_uses_the_template_and_remembers_its_prefix(llm: LLM) -> None:
    messages = [{"role": "user", "content": "hi"}]
    prompt = llm.tokenizer.apply_chat_template(messages)
    assert prompt == "<user>hi<assistant>"
    first = llm.chat(messages, GREEDY)
    assert first.prompt_ids == llm.tokenizer.encode(prompt, add_bos=False, parse_special=True)
    messages += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "so?"}]
    again = llm.chat(messages, GREEDY)
    assert again.ids == llm.generate(again.prompt_ids, GREEDY).ids
    stream = llm.chat(messages, GREEDY, stream=True)
    assert isinstance(stream, TextStream)
    assert [item.token_id for item in stream] == again.ids


def test_cancelling(llm: LLM) -> None:
    stream = llm.stream("hello", GREEDY)
    next(stream)
    stream.cancel()
    assert len(list(stream)) == 1
    assert stream.completion.stop_reason == "cancelled"
    assert len(stream.completion.ids) == 2


def test_closing_a_stream_frees_the_model(llm: LLM) -> None:
    stream = llm.stream("hello", GREEDY)
    next(stream)
    with pytest.raises(RequestError, match="not ended"):
        _ = stream.completion
    with pytest.raises(RequestError, match="another stream"):
        llm.generate("hello", GREEDY)
    stream.close()
    assert stream.completion.stop_reason == "cancelled"
    assert len(llm.generate("hello", GREEDY).ids) == 10


def test_a_closed_stream_has_the_text_that_was_held_back(llm: LLM) -> None:
    """It can become no stop string any more. Where the last token ends it, its item has it."""
    whole = llm.generate("hello", GREEDY)
    stop = [char + "\0" for char in set(whole.text)]
    params = replace(GREEDY, stop=stop)
    for n in range(1, 10):
        with llm.stream("hello", params) as stream:
            said = "".join(next(stream).text for _ in range(n))
        made = stream.completion
        assert (made.stop_reason, made.ids) == ("cancelled", whole.ids[:n])
        assert made.text == llm.generate("hello", replace(GREEDY, max_tokens=n)).text
        assert made.text.startswith(said)
        assert len(made.text) > len(said)
    assert llm.generate("hello", params).text == whole.text


def test_threads_wait_their_turn(llm: LLM) -> None:
    expected = llm.generate("hello", GREEDY).ids
    got: list[list[int]] = []
    threads = [
        threading.Thread(target=lambda: got.append(llm.generate("hello", GREEDY).ids))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [expected] * 4


def test_max_seq_len(path: Path) -> None:
    with LLM.load(path, max_seq_len=32) as llm:
        assert llm.max_seq_len == 32
        assert llm.generate("hello", SamplingParams(ignore_eos=True)).stop_reason == "context"
    for bad in (0, 129, -1):
        with pytest.raises(RequestError, match="max_seq_len: expected 1 to 128"):
            LLM.load(path, max_seq_len=bad)


def test_a_model_that_cannot_fit_is_refused_with_the_figures(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("m40llm.device.cpu.ops.CpuOps.free_bytes", lambda self: 100_000)
    with pytest.raises(DeviceError, match=r"needs .* \(weights .* cache .*\); .* 0\.1 MB free"):
        LLM.load(path)


@pytest.mark.parametrize("bad", ["5", 100.5, True])
def test_max_seq_len_of_another_kind(path: Path, bad: Any) -> None:
    with pytest.raises(RequestError, match="max_seq_len: expected a number of tokens, got"):
        LLM.load(path, max_seq_len=bad)
    with pytest.raises(RequestError, match="fit: expected true or false, got"):
        LLM.load(path, fit="no")  # type: ignore[arg-type]


def test_without_max_seq_len_the_context_shrinks_to_what_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tiny_gguf(tmp_path / "long.gguf", context_length=1 << 20)
    monkeypatch.setattr("m40llm.device.cpu.ops.CpuOps.free_bytes", lambda self: 20_000_000)
    with LLM.load(path) as llm:
        assert 256 <= llm.max_seq_len < 1 << 20
        assert llm.plan.total <= 20_000_000


@pytest.mark.parametrize("device", ["tpu", "cuda:x", "", "CPU"])
def test_unknown_devices(path: Path, device: str) -> None:
    with pytest.raises(RequestError, match="device: expected auto, cpu"):
        LLM.load(path, device=device)


@pytest.mark.parametrize("prompt", ["", [], [[]], 5, [1.5, "a"], None, b"hi"])
def test_bad_prompts(llm: LLM, prompt: object) -> None:
    with pytest.raises(RequestError):
        llm.generate(prompt, GREEDY)  # type: ignore[call-overload]


def test_wrong_types_are_named(llm: LLM) -> None:
    with pytest.raises(RequestError, match="params: expected SamplingParams, got dict"):
        llm.generate("hi", {"temperature": 0})  # type: ignore[call-overload]
    with pytest.raises(RequestError, match=r"path_or_alias: .* got NoneType"):
        LLM.load(None)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="messages: empty"):
        llm.chat([])
    with pytest.raises(RequestError, match=r"messages\[0\]: expected a key 'content'"):
        llm.chat([{"role": "user"}])


def test_missing_file_and_closed_model(path: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no such file"):
        LLM.load(tmp_path / "none.gguf")
    llm = LLM.load(path)
    llm.close()
    llm.close()
    with pytest.raises(RequestError, match="closed"):
        llm.generate("hello")


def test_half_a_file_loads_nothing(path: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ModelFileError, match="the file ends at"):
        LLM.load(cut)


def test_stories(shared_data: Path) -> None:
    """A real model of 260 thousand parameters writes its known story."""
    with LLM.load(shared_data / "models" / "stories260K.f32.gguf") as llm:
        text = llm.generate([1], SamplingParams(temperature=0, max_tokens=24)).text
    assert text.strip().startswith("Once upon a time, there was a little girl named Lily.")
