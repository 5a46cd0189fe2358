"""Requests that join and leave: each answer is the one it has alone, whatever else goes on."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m40llm import LLM, SamplingParams
from m40llm.bench.synthetic import synthetic_model
from m40llm.device import open_device
from m40llm.device.decoder import FORMS
from m40llm.device.gpu.ops import GpuOps
from m40llm.engine.decode_step import DECODE_FORMS, DecodeForm
from m40llm.engine.engine import Engine
from m40llm.engine.job import Job
from m40llm.engine.scheduler import Scheduler
from m40llm.engine.slot import step_rows
from m40llm.engine.step import Step
from m40llm.errors import DeadlineError, DeviceError, RequestError
from m40llm.testing import write_tiny_gguf
from m40llm.testing.tiny_shape import TINY_SHAPE

N_SLOTS, CHUNK = 3, 4
LONG = [1, *range(20, 50)]
Params = SamplingParams


@dataclass
class Heard:
    """What a job's listener has heard."""

    steps: list[Step] = field(default_factory=list)
    states: list[Any] = field(default_factory=list)
    ends: list[Exception | None] = field(default_factory=list)
    most: int = 1000  # tokens wanted

    def tell(self, step: Step) -> bool:
        self.steps.append(step)
        return len(self.steps) < self.most

    @property
    def ids(self) -> list[int]:
        return [step.token.token_id for step in self.steps]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("m") / "tiny.gguf", context_length=64)


@pytest.fixture(scope="module")
def engine(path: Path) -> Engine:
    llm = LLM.load(path, device="cpu", slots=N_SLOTS)
    return Engine(llm._open_engine().model, llm.tokenizer.stop_ids)


def greedy(n: int = 6, **fields: Any) -> Params:
    return SamplingParams(**{"temperature": 0, "max_tokens": n, "ignore_eos": True, **fields})


def job_of(engine: Engine, prompt: list[int], params: Params, heard: Heard, **fields: Any) -> Job:
    request = engine.request(prompt, params)
    return Job(request, heard.tell, heard.ends.append, **fields)


def submit(
    scheduler: Scheduler, prompt: list[int], params: Params | None = None, **fields: Any
) -> tuple[Job, Heard]:
    heard = Heard(most=fields.pop("most", 1000))
    job = job_of(scheduler._engine, prompt, params or greedy(), heard, **fields)
    scheduler.waiting.add(job)
    return job, heard


def run_out(scheduler: Scheduler) -> None:
    while scheduler.run():
        pass


def alone(engine: Engine, prompt: list[int], params: Params) -> Heard:
    scheduler = Scheduler(engine, CHUNK)
    _, heard = submit(scheduler, prompt, params)
    run_out(scheduler)
    assert heard.ends == [None]
    return heard


requests = st.tuples(
    st.integers(1, 30),  # tokens of LONG that the prompt begins with
    st.lists(st.integers(60, 90), max_size=9),  # and what follows
    st.sampled_from([greedy(), greedy(1), greedy(9, temperature=3.0, seed=5)]),
    st.integers(0, 12),  # rounds before it comes
    st.sampled_from([None, None, 0, 3, 6]),  # rounds after which it is cancelled
)


@settings(max_examples=20)
@given(st.lists(requests, min_size=2, max_size=5))
def test_answers_are_those_of_a_request_alone(engine: Engine, drawn: list[Any]) -> None:
    scheduler = Scheduler(engine, CHUNK)
    jobs: list[tuple[int, int | None, list[int], Params]] = [
        (start, end, [*LONG[:n], *tail], params) for n, tail, params, start, end in drawn
    ]
    found: dict[int, tuple[Job, Heard]] = {}
    for now in range(1000):
        for at, (start, end, prompt, params) in enumerate(jobs):
            if start == now:
                found[at] = submit(scheduler, prompt, params)
            if end is not None and start + end == now:
                found[at][0].is_cancelled = True
        if not scheduler.run() and len(found) == len(jobs) and now > 20:
            break
    for at, (_, end, prompt, params) in enumerate(jobs):
        _, heard = found[at]
        expected = alone(engine, prompt, params)
        assert heard.ends == [None]
        if end is None:
            assert heard.steps == expected.steps  # tokens and logprobs, bit for bit
        else:
            assert heard.steps == expected.steps[: len(heard.steps)]


@pytest.mark.parametrize("shared", [3, 4, 9, 31])
def test_whole_chunks_are_used_again(engine: Engine, shared: int) -> None:
    scheduler = Scheduler(engine, CHUNK)
    submit(scheduler, LONG)
    run_out(scheduler)
    prompt = [*LONG[:shared], 99, 98, 97]
    job, heard = submit(scheduler, prompt)
    run_out(scheduler)
    assert job.request.clock.n_cached == min(shared, len(LONG)) // CHUNK * CHUNK
    assert heard.steps == alone(engine, prompt, greedy()).steps


def test_the_last_token_is_computed_again(engine: Engine) -> None:
    """Its logits are wanted."""
    scheduler, prompt = Scheduler(engine, CHUNK), LONG[: 2 * CHUNK]
    for n_cached in (0, CHUNK):
        job, heard = submit(scheduler, prompt)
        run_out(scheduler)
        assert job.request.clock.n_cached == n_cached
        assert heard.steps == alone(engine, prompt, greedy()).steps


def test_a_prefix_is_copied_from_a_slot_at_work(engine: Engine) -> None:
    scheduler = Scheduler(engine, CHUNK)
    submit(scheduler, LONG, greedy(40))
    for _ in range(4):  # three whole chunks and part of what follows are read
        scheduler.run()
    prompt = [*LONG[:14], 99, 98]
    job, heard = submit(scheduler, prompt)
    _, other = submit(scheduler, [1])
    run_out(scheduler)
    assert job.request.clock.n_cached == 12
    assert heard.steps == alone(engine, prompt, greedy()).steps
    assert other.steps == alone(engine, [1], greedy()).steps


def test_an_answer_is_not_used_again(engine: Engine) -> None:
    """What decode has put into the cache is rounded otherwise than what a prefill would."""
    scheduler = Scheduler(engine, CHUNK)
    _, heard = submit(scheduler, LONG[:CHUNK], greedy(12))
    run_out(scheduler)
    job, _ = submit(scheduler, [*LONG[:CHUNK], *heard.ids, 7])
    run_out(scheduler)
    assert job.request.clock.n_cached == CHUNK


def test_a_long_prompt_delays_others_by_a_chunk_a_token(engine: Engine) -> None:
    scheduler = Scheduler(engine, CHUNK)
    _, heard = submit(scheduler, [1, 2], greedy(30))
    scheduler.run()
    submit(scheduler, LONG)
    for n in range(3, 3 + len(LONG) // CHUNK):
        scheduler.run()
        assert len(heard.steps) == n


def test_prompts_take_turns(engine: Engine) -> None:
    scheduler = Scheduler(engine, CHUNK)
    submit(scheduler, LONG)
    _, short = submit(scheduler, [5, 6], greedy(1))
    scheduler.run()
    scheduler.run()
    assert short.ends == [None]


@pytest.mark.parametrize(
    ("fields", "order"),
    [
        ([{}, {}, {}], [0, 1, 2]),
        ([{"priority": 1}, {"priority": 3}, {"priority": 2}], [1, 2, 0]),
        ([{"client": "busy"}, {"client": "busy"}, {"client": "new"}], [2, 0, 1]),
        ([{"end_s": 1e9}, {"end_s": 1e8}, {}], [1, 0, 2]),
        ([{"client": "busy", "priority": 1}, {"client": "new"}, {}], [0, 1, 2]),
    ],
)
def test_order(engine: Engine, fields: list[dict[str, Any]], order: list[int]) -> None:
    scheduler = Scheduler(engine, CHUNK)
    for n in (40, 40, 4):
        submit(scheduler, [1], greedy(n), client="busy")
    scheduler.run()
    firsts: list[int] = []
    for at, fields_of_one in enumerate(fields):
        job, _ = submit(scheduler, [2], greedy(1), **fields_of_one)
        job.tell = lambda step, at=at: firsts.append(at) is None
    run_out(scheduler)
    assert firsts == order


def test_what_nobody_wants_frees_its_slot_in_a_round(engine: Engine) -> None:
    scheduler = Scheduler(engine, CHUNK)
    _, no_more = submit(scheduler, [1], greedy(50), most=2)
    reading, read = submit(scheduler, LONG)
    decoding, decoded = submit(scheduler, [3], greedy(50))
    waiting, waited = submit(scheduler, [4])
    for _ in range(4):
        scheduler.run()
    assert len(no_more.steps) == 2
    for job in (reading, decoding, waiting):
        job.is_cancelled = True
    assert not scheduler.run()
    assert [heard.ends for heard in (no_more, read, decoded, waited)] == [[None]] * 4
    assert not waited.steps


def test_a_deadline_is_told(engine: Engine) -> None:
    scheduler = Scheduler(engine, CHUNK)
    heard = [submit(scheduler, [1], end_s=0.0)[1] for _ in range(2)]
    job, begun_heard = submit(scheduler, [2], greedy(40))
    scheduler.run()
    job.end_s = 0.0
    scheduler.run()
    for each in [*heard, begun_heard]:
        assert [type(end) for end in each.ends] == [DeadlineError]
    assert "1 tokens had been made" in str(begun_heard.ends[0]) or len(begun_heard.steps) > 1


def test_a_failure_costs_what_is_at_work(engine: Engine, monkeypatch: Any) -> None:
    scheduler = Scheduler(engine, CHUNK)
    at_work = [submit(scheduler, LONG[:n], greedy(40))[1] for n in (2, 9, 30)]
    for _ in range(5):
        scheduler.run()
    _, waited = submit(scheduler, LONG)
    with monkeypatch.context() as patch:
        patch.setattr(engine.model, "forward", raising(DeviceError("lost")))
        scheduler.run()
    assert [str(heard.ends) for heard in at_work] == ["[DeviceError('lost')]"] * 3
    run_out(scheduler)
    assert waited.steps == alone(engine, LONG, greedy()).steps


def test_a_device_that_does_not_recover(engine: Engine, monkeypatch: Any) -> None:
    scheduler = Scheduler(engine, CHUNK)
    submit(scheduler, LONG)
    monkeypatch.setattr(engine.model, "hidden", raising(DeviceError("lost")))
    monkeypatch.setattr(engine.model, "recover", raising(DeviceError("for good")))
    assert scheduler.run()
    with pytest.raises(DeviceError, match="for good"):
        scheduler.run()


def raising(error: Exception) -> Callable[..., Any]:
    def fails(*_: Any) -> Any:
        raise error

    return fails


def test_what_is_wrong_with_one_request_concerns_no_other(engine: Engine) -> None:
    scheduler = Scheduler(engine, CHUNK)
    banned = dict.fromkeys(range(engine.model.hp.vocab_size), -np.inf)
    _, wrong = submit(scheduler, [1], greedy(logit_bias=banned))
    _, right = submit(scheduler, [2])
    run_out(scheduler)
    assert [type(end) for end in wrong.ends] == [RequestError]
    assert right.steps == alone(engine, [2], greedy()).steps


def test_hidden_states(engine: Engine) -> None:
    """In company, in chunks: those of the engine, by rows that are read so many at a time."""
    scheduler = Scheduler(engine, CHUNK)
    heard = Heard()
    job = job_of(engine, LONG, greedy(), heard, read=heard.states.append)
    submit(scheduler, LONG, greedy(20))
    scheduler.run()
    scheduler.waiting.add(job)
    run_out(scheduler)
    assert heard.ends == [None]
    assert not heard.steps
    expected = np.concatenate(list(engine.hidden(LONG)))
    np.testing.assert_allclose(np.concatenate(heard.states), expected, atol=1e-4)


def test_chunks(engine: Engine) -> None:
    assert Scheduler(engine).chunk == 64
    assert Scheduler(engine, 10**6).chunk == engine.model.workspace.max_tokens
    with pytest.raises(RequestError, match="chunk"):
        Scheduler(engine, 0)


@pytest.fixture(scope="module", params=["emulator", pytest.param("cuda", marks=pytest.mark.gpu)])
def on_card(request: pytest.FixtureRequest) -> Any:
    """The decode program is that of test_decoder.py."""
    ops, _ = open_device(request.param)
    assert isinstance(ops, GpuOps)
    return synthetic_model(ops, TINY_SHAPE, "F16", n_seqs=4, max_seq_len=32)


@pytest.mark.parametrize("form", DECODE_FORMS)
def test_on_a_device(on_card: Any, form: DecodeForm) -> None:
    """Five on four slots, some of which the host decodes, one cancelled, one that wants no more."""
    engine = Engine(on_card, decode_form=form)
    prompts = [[7], [9, 8, 7, 6, 5, 4], [3, 2], [11] * 5, [12, 13]]
    params = [greedy(5), greedy(3), greedy(4, logprobs=2), greedy(5, temperature=1.0, seed=3)]
    params.append(greedy(9))
    expected = [alone(engine, *each).steps for each in zip(prompts, params, strict=True)]
    scheduler = Scheduler(engine, CHUNK)
    found = [submit(scheduler, *each) for each in zip(prompts, params, strict=True)]
    found[0][1].most = 2
    run_out(scheduler)
    assert found[0][1].steps == expected[0][:2]
    for (_, heard), steps in zip(found[1:], expected[1:], strict=True):
        assert heard.steps == steps
        assert heard.ends == [None]


@pytest.mark.parametrize("form", FORMS)
def test_a_device_is_told_of_what_nobody_wants(on_card: Any, form: DecodeForm) -> None:
    engine = Engine(on_card, decode_form=form)
    scheduler = Scheduler(engine, CHUNK)
    job, heard = submit(scheduler, [7], greedy(25))
    _, other = submit(scheduler, [9], greedy(8))
    while len(heard.steps) < 3:
        scheduler.run()
    job.is_cancelled = True
    scheduler.run()
    assert heard.ends == [None]
    run_out(scheduler)
    assert other.steps == alone(engine, [9], greedy(8)).steps


def test_a_job_that_cannot_begin_waits_again(engine: Engine, monkeypatch: Any) -> None:
    scheduler = Scheduler(engine, CHUNK)
    _, first = submit(scheduler, LONG, greedy(40))
    for _ in range(4):
        scheduler.run()
    _, heard = submit(scheduler, [*LONG[:14], 99])
    with monkeypatch.context() as patch:
        patch.setattr(engine.model.kv, "copy_prefix", raising(DeviceError("lost")))
        scheduler.run()
    assert [type(end) for end in first.ends] == [DeviceError]
    run_out(scheduler)
    assert heard.steps == alone(engine, [*LONG[:14], 99], greedy()).steps


class NothingMayCome:
    """A constraint that is found to have no way on, after its first token."""

    def __init__(self) -> None:
        self.n_heeded = 0

    def mask(self) -> Any:
        if self.n_heeded:
            raise RequestError("the constraint cannot go on")
        return np.full(100, 2**32 - 1, np.uint32)

    def heed(self, token_id: int) -> None:
        self.n_heeded += 1

    def fork(self) -> "NothingMayCome":
        return NothingMayCome()


@pytest.mark.parametrize("form", ["host", "graph"])
def test_a_constraint_that_cannot_go_on_ends_its_own(on_card: Any, form: DecodeForm) -> None:
    engine = Engine(on_card, decode_form=form)
    scheduler, heard = Scheduler(engine, CHUNK), Heard()
    request = engine.request([7], greedy(9), constraint=NothingMayCome())
    scheduler.waiting.add(Job(request, heard.tell, heard.ends.append))
    _, other = submit(scheduler, [9], greedy(4))
    run_out(scheduler)
    assert [type(end) for end in heard.ends] == [RequestError]
    assert other.steps == alone(engine, [9], greedy(4)).steps


def test_a_launch_of_one_step_is_not_told_to_end(on_card: Any, monkeypatch: Any) -> None:
    """While it waits behind a prefill it would end before its first token, as would the next."""
    decoder = on_card.decoder
    monkeypatch.setattr(decoder._card, "event", object)
    monkeypatch.setattr(decoder._card, "has_come", lambda _: False)
    for one_step in (True, False):
        decoder._ended = decoder._yielded = None
        n_before = decoder._n_commands
        decoder.advance("persistent", one_step=one_step)
        decoder.make_way()
        assert decoder._n_commands == n_before + (0 if one_step else 1)
    decoder._ended = decoder._yielded = None
    decoder.recover()


@pytest.mark.parametrize(
    ("alike_rows", "n_seqs", "experts", "expected"),
    [
        (16, 4, (0, 0), 16),
        (0, 4, (0, 0), 4),
        (0, 40, (0, 0), 40),
        (0, 100, (0, 0), 64),
        (0, 8, (8, 2), 4),
        (0, 8, (4, 8), 1),
    ],
)
def test_rows_of_a_step(
    alike_rows: int, n_seqs: int, experts: tuple[int, int], expected: int
) -> None:
    model: Any = SimpleNamespace(
        ops=SimpleNamespace(alike_rows=alike_rows),
        kv=SimpleNamespace(n_seqs=n_seqs),
        hp=SimpleNamespace(n_experts=experts[0], n_experts_used=experts[1]),
    )
    assert step_rows(model) == expected
