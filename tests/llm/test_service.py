"""Many requests at a time: text, vectors, a full queue, closing, a device that is lost."""

import gc
import threading
import time
import weakref
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m40llm import LLM, SamplingParams
from m40llm.errors import BusyError, DeadlineError, DeviceError, M40LLMError, RequestError
from m40llm.llm.results import Completion, StreamItem
from m40llm.llm.service import Service
from m40llm.model.transformer import Transformer
from m40llm.testing import write_tiny_gguf
from m40llm.testing.adapters import write_adapter

PROMPTS = ["ab", "abc abc abc abc", "hello", "a b c d e f g h i j", "zz"]
GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
LONG = SamplingParams(temperature=0, max_tokens=400, ignore_eos=True)


class Heard:
    """A listener that remembers, and can be waited for."""

    def __init__(self) -> None:
        self.items: list[StreamItem] = []
        self.end: Any = None
        self._has_ended, self._has_begun = threading.Event(), threading.Event()

    def __call__(self, event: Any) -> None:
        if isinstance(event, StreamItem):
            self.items.append(event)
        else:
            assert not self._has_ended.is_set()
            self.end = event
            self._has_ended.set()
        self._has_begun.set()

    def wait(self) -> Any:
        assert self._has_ended.wait(60)
        return self.end

    def wait_for_a_token(self) -> None:
        assert self._has_begun.wait(60)

    @property
    def completion(self) -> Completion:
        end = self.wait()
        assert isinstance(end, Completion), end
        return end


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("m") / "tiny.gguf", context_length=512)


@pytest.fixture(scope="module")
def service(path: Path) -> Iterator[Service]:
    with Service.load(path, device="cpu", slots=3, chunk=4) as service:
        yield service


def ask(service: Service, prompt: Any, params: Any = GREEDY, **fields: Any) -> Heard:
    heard = Heard()
    service.submit(prompt, params, listen=heard, **fields)
    return heard


def one_after_another(service: Service, prompts: list[str], params: Any) -> list[Completion]:
    return [ask(service, prompt, params).completion for prompt in prompts]


def test_answers_in_company_are_those_alone(service: Service) -> None:
    wild = SamplingParams(temperature=2.0, top_p=1.0, max_tokens=9, seed=3, logprobs=2)
    for params in (GREEDY, wild):
        expected = one_after_another(service, PROMPTS, params)
        heard = [ask(service, prompt, params) for prompt in PROMPTS]
        for each, alone in zip(heard, expected, strict=True):
            assert each.completion.ids == alone.ids
            assert each.completion.text == alone.text == "".join(i.text for i in each.items)
            assert each.completion.logprobs == alone.logprobs
            assert [item.token_id for item in each.items] == alone.ids


def test_an_answer_is_that_of_llm(service: Service, path: Path) -> None:
    """Whose prefill takes the prompt in one piece; of tokens that lead by far."""
    with LLM.load(path, device="cpu") as llm:
        for prompt in PROMPTS:
            assert ask(service, prompt).completion.ids == llm.generate(prompt, GREEDY).ids


def test_top_logprobs_come_with_each_token(service: Service) -> None:
    heard = ask(service, "ab", SamplingParams(temperature=0, max_tokens=3, logprobs=4))
    completion = heard.completion
    assert completion.logprobs is not None
    assert [item.top for item in heard.items] == [token.top for token in completion.logprobs]
    assert all(len(item.top) == 4 for item in heard.items)


def test_stop_strings(service: Service) -> None:
    text = ask(service, "ab", LONG).completion.text
    stop = text[20:23]
    cut = text[: text.index(stop)]
    completion = ask(service, "ab", SamplingParams(**{**vars(LONG), "stop": [stop]})).completion
    assert (completion.text, completion.stop_reason) == (cut, "stop")


def test_cancel(service: Service) -> None:
    heard = Heard()
    ticket = service.submit("ab", LONG, listen=heard)
    heard.wait_for_a_token()
    ticket.cancel()
    completion = heard.completion
    assert completion.stop_reason == "cancelled"
    assert len(completion.ids) == len(heard.items) < 400
    ticket.cancel()  # again does nothing


def test_timings(service: Service) -> None:
    prompt = [1, *range(20, 40)]
    ask(service, prompt).wait()
    timings = ask(service, prompt).completion.timings
    assert timings.cached_tokens == 20
    assert timings.generated_tokens == 8
    assert 0 <= timings.queue_s <= timings.ttft_s
    assert timings.tokens_per_s > 0


def test_bad_requests_are_refused_at_once(service: Service) -> None:
    def listen(_: Any) -> None:
        raise AssertionError("nothing was taken")

    for prompt, fields in (
        ([], {}),
        ([10**6], {}),
        ("ab", {"params": "greedy"}),
        ("ab", {"params": SamplingParams(logprobs=10**6)}),
        ("ab", {"lora": "none"}),
        ("ab", {"deadline_s": 0}),
        ("ab", {"deadline_s": "5"}),
        ("ab", {"priority": "high"}),
        ("ab", {"client": 5}),
        ([1] * 600, {}),
    ):
        with pytest.raises(RequestError):
            service.submit(prompt, **{"params": GREEDY, **fields}, listen=listen)  # type: ignore[arg-type]
    for prompts, pooling in (([], "mean"), (["a", []], "mean"), (["a"], "max")):
        with pytest.raises(RequestError):
            service.embed(prompts, pooling, listen=listen)  # type: ignore[arg-type]


def test_bad_services(path: Path) -> None:
    for fields in ({"speculate": "ngram"}, {"slots": 0}, {"chunk": 0}, {"max_waiting": -1}):
        with pytest.raises(RequestError, match=next(iter(fields))):
            Service.load(path, device="cpu", **fields)  # type: ignore[arg-type]
    llm = LLM.load(path, device="cpu")
    with pytest.raises(RequestError, match="chunk"):
        Service(llm, chunk=0)
    assert len(llm.generate("ab", GREEDY).ids) == 8  # it is not lent


def test_a_listener_that_fails_costs_its_own_request(service: Service) -> None:
    def fails(_: Any) -> None:
        raise ValueError("no")

    service.submit("ab", LONG, listen=fails)
    assert len(ask(service, "ab").completion.ids) == 8
    assert until(lambda: service.stats().n_running == 0)


def until(condition: Any) -> bool:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return False


def test_deadline(service: Service) -> None:
    heard = ask(service, "ab", LONG, deadline_s=1e-3)
    assert isinstance(heard.wait(), DeadlineError)


@pytest.mark.parametrize("deadline_s", [None, 0.5])
def test_an_answer_cut_short_has_all_its_text(service: Service, deadline_s: float | None) -> None:
    """What was held back, since it could have become a stop string, is text then."""
    stop = [char + "\0" for char in set(ask(service, "ab", LONG).completion.text)]
    items: list[StreamItem] = []
    end, tickets = Heard(), []

    def slow(event: Any) -> None:
        if not isinstance(event, StreamItem):
            end(event)
            return
        items.append(event)
        time.sleep(0.02)
        if deadline_s is None and len(items) == 5:
            tickets[0].cancel()

    params = SamplingParams(**{**vars(LONG), "stop": stop})
    tickets += [service.submit("ab", params, listen=slow, deadline_s=deadline_s)]
    told = end.wait()
    assert isinstance(told, Completion if deadline_s is None else DeadlineError)
    made = told if deadline_s is None else told.completion
    assert made.stop_reason == "cancelled"
    assert made.ids == [item.token_id for item in items]
    alone = SamplingParams(**{**vars(LONG), "max_tokens": len(items)})
    assert made.text == ask(service, "ab", alone).completion.text
    said = "".join(item.text for item in items)
    assert made.text.startswith(said)
    assert len(made.text) > len(said)


def test_a_deadline_in_the_queue(service: Service) -> None:
    heard = ask(service, "ab", LONG, deadline_s=1e-9)
    made = heard.wait().completion
    assert (made.ids, made.text, made.timings.prefill_s) == ([], "", 0)


@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
def test_vectors(service: Service, path: Path, pooling: Any) -> None:
    heard, other = Heard(), ask(service, "ab")
    service.embed(PROMPTS, pooling, listen=heard)
    with LLM.load(path, device="cpu") as llm:
        np.testing.assert_allclose(heard.wait(), llm.embed(PROMPTS, pooling), atol=1e-5)
    other.wait()


def test_vectors_that_nobody_wants(service: Service) -> None:
    heard = Heard()
    service.embed(PROMPTS * 4, listen=heard).cancel()
    assert isinstance(heard.wait(), RequestError)


def test_a_full_queue(path: Path) -> None:
    with Service.load(path, device="cpu", slots=1, max_waiting=2) as service:
        at_work = ask(service, "ab", LONG)
        at_work.wait_for_a_token()
        waiting = [ask(service, "ab") for _ in range(2)]
        with pytest.raises(BusyError, match="2 requests wait") as error:
            ask(service, "ab")
        assert error.value.retry_after_s >= 1
        stats = service.stats()
        assert (stats.n_slots, stats.n_running, stats.n_waiting) == (1, 1, 2)
        assert 0 < stats.kv_tokens <= stats.kv_capacity == 512
        for heard in waiting:
            assert len(heard.completion.ids) == 8


def test_a_queue_of_none(path: Path) -> None:
    with Service.load(path, device="cpu", slots=1, max_waiting=0) as service:
        heard = ask(service, "ab", LONG)
        with pytest.raises(BusyError):  # before it has its slot, and when it has
            ask(service, "ab")
        heard.wait_for_a_token()
        with pytest.raises(BusyError):
            ask(service, "ab")


def test_closing_waits_so_long_and_no_longer(path: Path) -> None:
    for grace_s, params, reason in ((60.0, GREEDY, "length"), (0.0, LONG, "cancelled")):
        service = Service.load(path, device="cpu", slots=1)
        heard = [ask(service, "ab", params) for _ in range(2)]
        service.close(grace_s)
        assert [each.completion.stop_reason for each in heard] == [reason] * 2
        with pytest.raises(BusyError, match="closing"):
            ask(service, "ab")
        service.close()


def test_a_model_that_is_served_answers_nothing_by_itself(path: Path) -> None:
    llm = LLM.load(path, device="cpu")
    with Service(llm):
        assert llm.decode_form == "host"  # which may be read
        with pytest.raises(RequestError, match="Service"):
            llm.generate("ab")
        with pytest.raises(RequestError, match="Service"):
            Service(llm)


def broken(model: Any, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    def fails(*_: Any) -> Any:
        raise DeviceError("lost")

    for name in names:
        monkeypatch.setattr(model, name, fails)


def test_a_device_error_fails_what_is_at_work(path: Path, monkeypatch: Any) -> None:
    with Service.load(path, device="cpu", slots=1) as service:
        expected = ask(service, "ab").completion.ids
        model = service._runner._lent.engine.model  # type: ignore[union-attr]
        broken(model, monkeypatch, "forward")
        assert isinstance(ask(service, "ab").wait(), DeviceError)
        monkeypatch.undo()
        assert ask(service, "ab").completion.ids == expected


def test_a_lost_device_is_opened_again(path: Path, monkeypatch: Any) -> None:
    with Service.load(path, device="cpu", slots=1) as service:
        expected = ask(service, "ab").completion.ids
        old = service.llm
        lost = ask(service, "ab", LONG)
        lost.wait_for_a_token()
        waiting = ask(service, "abc")
        broken(service._runner._lent.engine.model, monkeypatch, "forward", "recover")  # type: ignore[union-attr]
        assert isinstance(lost.wait(), DeviceError)
        assert len(waiting.completion.ids) == 8
        assert service.llm is not old
        assert ask(service, "ab").completion.ids == expected


def test_a_device_that_cannot_be_opened_again(path: Path, monkeypatch: Any) -> None:
    with Service(LLM.load(path, device="cpu")) as service:
        heard = [ask(service, "ab", LONG) for _ in range(2)]
        broken(service._runner._lent.engine.model, monkeypatch, "forward", "recover")  # type: ignore[union-attr]
        assert all(isinstance(each.wait(), DeviceError) for each in heard)
        assert until(lambda: "cannot be opened again" in service.stats().failure)
        with pytest.raises(DeviceError, match="lost"):
            ask(service, "ab")


def test_many_threads(service: Service) -> None:
    expected = one_after_another(service, PROMPTS, GREEDY)
    failed: list[str] = []

    def client(n: int) -> None:
        for at, prompt in enumerate(PROMPTS):
            try:
                if ask(service, prompt, client=str(n)).completion.ids != expected[at].ids:
                    failed.append(prompt)
            except M40LLMError as error:
                failed.append(str(error))

    threads = [threading.Thread(target=client, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert service.stats().n_running == 0


def test_what_comes_while_it_closes_is_heard_of(path: Path) -> None:
    """Taken after a round that found nothing, before the thread has looked whether to end."""
    service = Service.load(path, device="cpu", slots=1)
    runner, heard = service._runner, Heard()
    run = runner.scheduler.run

    def run_late() -> bool:
        if run():
            return True
        if not runner._is_closing:
            runner.scheduler.run = run  # type: ignore[method-assign]
            service.submit("ab", GREEDY, listen=heard)
            runner._is_closing = True
        return False

    runner.scheduler.run = run_late  # type: ignore[method-assign]
    runner.wake()
    assert len(heard.completion.ids) == 8
    service.close()


def test_a_stream_made_before_it_is_served_does_not_run(path: Path) -> None:
    llm = LLM.load(path, device="cpu")
    stream = llm.stream("ab", GREEDY)
    with Service(llm), pytest.raises(RequestError, match="Service"):
        next(stream)


def test_many_texts_wait_as_one(path: Path) -> None:
    with Service.load(path, device="cpu", slots=1, max_waiting=1) as service:
        at_work, vectors = ask(service, "ab", LONG), Heard()
        at_work.wait_for_a_token()
        service.embed(["text"] * 50, listen=vectors)
        assert service.stats().n_waiting == 1
        with pytest.raises(BusyError):
            ask(service, "ab")
        at_work.wait()
        assert vectors.wait().shape == (50, service.llm.hparams.n_embd)


def test_nothing_holds_on_to_a_lost_model(path: Path, monkeypatch: Any) -> None:
    """Not the errors that listeners keep: its memory is free when the next one is loaded."""
    alive: list[Any] = []

    def load() -> LLM:
        gc.collect()
        alive.append(old())
        return LLM.load(path, device="cpu")

    with Service(LLM.load(path, device="cpu"), reload=load) as service:
        old = weakref.ref(service._runner._lent.engine.model)  # type: ignore[union-attr]
        heard = ask(service, "ab", LONG)
        heard.wait_for_a_token()
        with monkeypatch.context() as patch:
            for name in ("forward", "recover"):
                patch.setattr(Transformer, name, lost)
            assert isinstance(heard.wait(), DeviceError)
            assert until(lambda: alive)
        assert alive == [None]
        assert until(lambda: service._runner._lent is not None)
        assert len(ask(service, "ab").completion.ids) == 8


def lost(model: Transformer, *_: Any) -> Any:
    raise DeviceError("lost")


def test_an_adapter_is_that_of_the_model_loaded_again(path: Path, tmp_path: Path) -> None:
    lora = write_adapter(tmp_path / "a.gguf", path, ["blk.0.attn_q.weight"])
    with Service.load(path, device="cpu", slots=1, lora={"a": lora}) as service:
        expected = ask(service, "abc", lora="a").completion.ids
        lost_one = ask(service, "ab", LONG)
        lost_one.wait_for_a_token()
        waiting = ask(service, "abc", lora="a")
        model = service._runner._lent.engine.model  # type: ignore[union-attr]
        for name in ("forward", "recover"):
            setattr(model, name, partial(lost, model))
        assert waiting.completion.ids == expected
