"""Decoders of several sizes by turns: each answer is whole, whichever of them made its tokens."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m40llm import LLM, SamplingParams
from m40llm.bench.synthetic import synthetic_model
from m40llm.device import open_device
from m40llm.device.decoder import Answer, SlotRequest
from m40llm.engine import device_slots
from m40llm.engine.device_slots import DeviceSlots
from m40llm.engine.engine import Engine
from m40llm.engine.job import Job
from m40llm.engine.scheduler import Scheduler
from m40llm.engine.slot import Slot
from m40llm.errors import RequestError
from m40llm.model.batch import Batch
from m40llm.testing import write_tiny_gguf
from m40llm.testing.tiny_shape import TINY_SHAPE

N_SLOTS, CHUNK = 12, 4
SMALL = [1, 2, 4, 8]


class GreedyDecoder:
    """Implements `Decoder` on the host: a token of each slot a round, told one round later."""

    forms, max_bias, max_stop_ids, device = ("graph",), 64, 8, "a test's"

    def __init__(self, model: Any, n_slots: int) -> None:
        self.model, self.n_slots = model, n_slots
        self.slots: dict[int, SlotRequest] = {}
        self.told: list[Answer] = []
        self.n_rounds = 0

    def why_not(self, form: str) -> str:
        return "" if form == "graph" else "only graph"

    def begin(self, slot: int, request: SlotRequest) -> None:
        assert slot not in self.slots
        assert slot < self.n_slots
        self.slots[slot] = request

    def cancel(self, *slots: int) -> None:
        for slot in slots:
            self.slots.pop(slot, None)
        self.told = [answer for answer in self.told if answer.slot not in slots]

    def advance(self, form: str, *, one_step: bool = False) -> None:
        self.n_rounds += 1
        for slot, request in list(self.slots.items()):
            rows = self.model.forward(Batch.decode([(slot, request.pos, request.token_id)], 1))
            token_id = int(np.argmax(self.model.ops.read(rows)[0]))
            left = request.count - 1
            self.told.append(Answer(slot, token_id, -1.0, None if left else "length"))
            self.slots[slot] = SlotRequest(token_id, request.pos + 1, left)
            if not left:
                del self.slots[slot]

    def answers(self) -> list[Answer]:
        told, self.told = self.told, []
        return told

    def make_way(self) -> None: ...

    def recover(self) -> None:
        self.slots, self.told = {}, []


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    path = write_tiny_gguf(tmp_path_factory.mktemp("m") / "tiny.gguf", context_length=64)
    model = LLM.load(path, device="cpu", slots=N_SLOTS)._open_engine().model
    decoders = {n: GreedyDecoder(model, n) for n in (*SMALL, N_SLOTS)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "decoder_of", decoders.__getitem__)
        yield Engine(model, decode_form="graph")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_slots, "_PATIENCE", 3)


def greedy(n: int) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=n, ignore_eos=True)


def ask(scheduler: Scheduler, engine: Engine, prompt: list[int], n: int) -> tuple[Job, list[int]]:
    heard: list[int] = []

    def tell(step: Any) -> bool:
        heard.append(step.token.token_id)
        return True

    job = Job(engine.request(prompt, greedy(n)), tell, lambda error: None)
    scheduler.waiting.add(job)
    return job, heard


def run_out(scheduler: Scheduler) -> None:
    while scheduler.run():
        pass


def alone(engine: Engine, prompt: list[int], n: int) -> list[int]:
    scheduler = Scheduler(engine, CHUNK)
    _, heard = ask(scheduler, engine, prompt, n)
    run_out(scheduler)
    return heard


def n_rounds(engine: Engine) -> dict[int, int]:
    return {n: engine.model.decoder_of(n).n_rounds for n in (*SMALL, N_SLOTS)}  # type: ignore[union-attr]


def test_as_few_rows_as_are_needed(engine: Engine) -> None:
    scheduler = Scheduler(engine, CHUNK, batch_invariant=False)
    before = n_rounds(engine)
    ask(scheduler, engine, [7, 8], 9)
    run_out(scheduler)
    after = n_rounds(engine)
    assert {n for n in after if after[n] > before[n]} == {1}
    for k in range(5):
        ask(scheduler, engine, [k + 1], 6 + 9 * (k == 0))
    run_out(scheduler)
    last = n_rounds(engine)
    assert last[8] > after[8]  # while there were five
    assert last[1] > after[1]  # once the first was left
    assert last[N_SLOTS] == before[N_SLOTS]


def test_all_rows_always(engine: Engine) -> None:
    before = n_rounds(engine)
    alone(engine, [7, 8], 9)
    after = n_rounds(engine)
    assert {n for n in after if after[n] > before[n]} == {N_SLOTS}


requests = st.tuples(
    st.lists(st.integers(1, 90), min_size=1, max_size=9),
    st.integers(1, 15),  # tokens
    st.integers(0, 12),  # rounds before it comes
    st.sampled_from([None, None, 0, 3, 6]),  # rounds after which it is cancelled
)


@settings(max_examples=25)
@given(st.lists(requests, min_size=2, max_size=15))
def test_answers_are_whole(engine: Engine, drawn: list[Any]) -> None:
    scheduler = Scheduler(engine, CHUNK, batch_invariant=False)
    found: dict[int, tuple[Job, list[int]]] = {}
    for now in range(20):
        for at, (prompt, n, start, end) in enumerate(drawn):
            if start == now:
                found[at] = ask(scheduler, engine, prompt, n)
            if at in found and end is not None and start + end == now:
                found[at][0].is_cancelled = True
        scheduler.run()
    run_out(scheduler)
    for at, (prompt, n, _, end) in enumerate(drawn):
        _, heard = found[at]
        expected = alone(engine, prompt, n)
        assert heard == (expected if end is None else expected[: len(heard)])
    assert not any(engine.model.decoder_of(n).slots for n in (*SMALL, N_SLOTS))  # type: ignore[union-attr]


def test_sizes_that_do_not_work_are_left_out(engine: Engine, monkeypatch: Any) -> None:
    known: Callable[[int], Any] = engine.model.decoder_of
    monkeypatch.setattr(engine.model, "decoder_of", lambda n: "no" if n in (1, 8) else known(n))
    assert DeviceSlots(engine, N_SLOTS, batch_invariant=False)._sizes == [2, 4, N_SLOTS]


def test_a_constraint_without_a_way_on_hurts_nobody_else(engine: Engine, monkeypatch: Any) -> None:
    slots = [Slot(i) for i in range(N_SLOTS)]
    on_device = DeviceSlots(engine, N_SLOTS, batch_invariant=False)

    def begin(*_: Any) -> None:
        raise RequestError("no token may come")

    monkeypatch.setattr(device_slots, "begin", begin)
    job = Job(engine.request([3], greedy(4)), lambda step: True, lambda error: None)
    job.request.ids.append(5)
    slots[2].job = job
    with pytest.raises(RequestError):
        on_device.begin(slots[2], slots)
    assert not slots[2].is_on_device


@pytest.mark.gpu
def test_on_a_card() -> None:
    """Five, then one, on ten slots: decode programs of 1 and 8, and what comes is whole."""
    ops, _ = open_device("cuda")
    model: Any = synthetic_model(ops, TINY_SHAPE, "F16", n_seqs=10, max_seq_len=64)  # type: ignore[arg-type]
    engine = Engine(model, decode_form="graph")
    scheduler = Scheduler(engine, CHUNK, batch_invariant=False)
    assert scheduler._on_device._sizes == [*SMALL, 10]
    found = [ask(scheduler, engine, [7 + k, 9], 12 + 24 * (k == 0)) for k in range(5)]
    run_out(scheduler)
    assert scheduler._on_device._size == 1
    for k, (_, heard) in enumerate(found):
        assert len(heard) == 12 + 24 * (k == 0)
        assert heard[:6] == alone(engine, [7 + k, 9], 6)
