"""Service: many requests at a time on one loaded model, from any thread."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from m40llm.engine.job import Job
from m40llm.engine.sampling_params import SamplingParams
from m40llm.engine.scalars import is_number, is_whole
from m40llm.engine.step import Step
from m40llm.errors import BusyError, RequestError
from m40llm.llm.answers import Lent
from m40llm.llm.arguments import Prompt, ids_of
from m40llm.llm.embed import Pooling, checked_pooling
from m40llm.llm.listeners import Listener, Told, VectorListener, VectorsTold
from m40llm.llm.llm import LLM
from m40llm.llm.runner import Runner
from m40llm.llm.stream import checked

DEFAULT_SLOTS: Final = 4
_FORGETTING: Final = 0.9  # of the seconds that a request takes, by the next one


@dataclass(frozen=True)
class Stats:
    """What a service is at.

    kv_tokens, kv_capacity  tokens in the cache of the requests under way, and how many fit
    failure                 why nothing is served any more; empty while it is
    """

    n_slots: int
    n_running: int
    n_waiting: int
    kv_tokens: int
    kv_capacity: int
    failure: str


class Ticket:
    """A request that was taken."""

    def __init__(self, jobs: Sequence[Job], wake: Callable[[], None]) -> None:
        self._jobs, self._wake = jobs, wake

    def cancel(self) -> None:
        """Ends it after the token in hand, from any thread; does nothing where it has ended."""
        for job in self._jobs:
            job.is_cancelled = True
        self._wake()


class Service:
    """Requests run in slots of the cache, as many at a time as there are; the others wait.

        with Service.load("smollm2", slots=4) as service:
            service.submit("The capital of France is", listen=print)

    An answer is the same, bit for bit, whatever else is under way (engine/scheduler.py), unless
    batch_invariant=False trades that for the speed of as few slots as are at work. A device
    error fails the requests under way; what waits goes on, if need be on the model loaded anew.
    """

    def __init__(
        self,
        llm: LLM,
        *,
        max_waiting: int = 64,
        chunk: int | None = None,
        batch_invariant: bool = True,
        reload: Callable[[], LLM] | None = None,
    ) -> None:
        _check_int("max_waiting", max_waiting, 0)
        if chunk is not None:
            _check_int("chunk", chunk, 1)
        self._max_waiting = max_waiting
        self._seconds = 1.0  # that a request takes, of late
        how = {"chunk": chunk, "batch_invariant": batch_invariant}
        self._runner = Runner(llm, how, reload)

    @property
    def llm(self) -> LLM:
        """The model, which answers nothing by itself any more; another one once it was reloaded."""
        return self._runner.llm

    @property
    def most_requests(self) -> int:
        """At once, those that wait included."""
        return len(self._runner.scheduler.slots) + self._max_waiting

    @classmethod
    def load(
        cls,
        path_or_alias: str | Path,
        *,
        slots: int = DEFAULT_SLOTS,
        max_waiting: int = 64,
        chunk: int | None = None,
        batch_invariant: bool = True,
        lora: dict[str, str | Path] | None = None,
        **how: Any,
    ) -> "Service":
        """A model file, `how` as for LLM.load, whose `speculate` a service does not do; adapters by
        the names that requests call them by."""
        if how.get("speculate") is not None:
            raise RequestError("speculate: expected None: requests of a service do without")

        def load() -> LLM:
            llm = LLM.load(path_or_alias, slots=slots, **how)
            for name, path in (lora or {}).items():
                llm.load_lora(path, name)
            return llm

        own: dict[str, Any] = {"max_waiting": max_waiting, "chunk": chunk}
        return cls(load(), **own, batch_invariant=batch_invariant, reload=load)

    def submit(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        listen: Listener,
        lora: str | None = None,
        priority: int = 0,
        deadline_s: float | None = None,
        client: str = "",
    ) -> Ticket:
        """Returns at once. `listen` is called on the service's thread, where it must not wait: with
        each StreamItem, then once with the Completion, or with what went wrong.

        lora        an adapter's name
        priority    larger ones are served first
        deadline_s  a DeadlineError is told after so many seconds, with what was made until then
        client      whose it is: who has the fewest requests under way is served next

        RequestError for what is wrong with it, BusyError where no more may wait.
        """
        lent, tokenizer = self._runner.open(), self.llm.tokenizer
        adapter = lent.adapters.named(lora)
        ids = ids_of(prompt, tokenizer)
        good = checked(lent.engine, tokenizer, ids, params, lent.constraints)
        answer = good.answer(tokenizer, lent.load_s)
        told = Told(answer, listen, self._note_seconds)
        request = lent.engine.request(good.prompt_ids, good.params, answer.clock, good.constraint)
        job = Job(request, told.tell, told.done, adapter=adapter, client=client, priority=priority)
        return self._enqueue(lent, [job], deadline_s)

    def embed(
        self,
        prompts: Sequence[Prompt],
        pooling: Pooling = "mean",
        *,
        normalise: bool = True,
        listen: VectorListener,
        priority: int = 0,
        deadline_s: float | None = None,
        client: str = "",
    ) -> Ticket:
        """As `submit`; `listen` is called once, with float32[n_prompts, n_embd] or what went wrong.
        The texts run as requests of their own, one after the other."""
        lent, how = self._runner.open(), checked_pooling(pooling)
        engine = lent.engine
        encode = self.llm.tokenizer.encode
        texts = [
            engine.check_ids(encode(one) if isinstance(one, str) else one, f"text {n}")
            for n, one in enumerate(prompts, 1)
        ]
        if not texts:
            raise RequestError("prompts: expected at least one text")
        told = VectorsTold(len(texts), how, normalise, listen, self._go_on)
        jobs = []
        for at, ids in enumerate(texts):
            request = engine.request(ids, SamplingParams())
            add, done = told.of(at)
            jobs.append(Job(request, _no_tokens, done, read=add, client=client, priority=priority))
        told.jobs = jobs
        return self._enqueue(lent, jobs, deadline_s)

    def stats(self) -> Stats:
        scheduler = self._runner.scheduler
        return Stats(
            n_slots=len(scheduler.slots),
            n_running=len(scheduler.busy),
            n_waiting=len(scheduler.waiting),
            kv_tokens=sum(slot.n_tokens for slot in scheduler.slots),
            kv_capacity=len(scheduler.slots) * self.llm.max_seq_len,
            failure=self._runner.failure,
        )

    def close(self, grace_s: float = 0.0) -> None:
        """Takes no more requests; what is not done after so many seconds is cancelled. Then the
        model gives its memory back. Where it is being loaded again, that comes to its end first."""
        self._runner.close(grace_s)

    def __enter__(self) -> "Service":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _enqueue(self, lent: Lent, jobs: list[Job], deadline_s: float | None) -> Ticket:
        """The first of the jobs, each of which sees to the next."""
        if deadline_s is not None and not (is_number(deadline_s) and deadline_s > 0):
            raise RequestError(f"deadline_s: expected a number above 0, got {deadline_s!r}")
        for job in jobs:
            _check_int("priority", job.priority, None)
            if not isinstance(job.client, str):
                raise RequestError(f"client: expected a text, got {job.client!r}")
            job.end_s = math.inf if deadline_s is None else job.request.begin_s + deadline_s
        self._runner.take(lent, jobs[0], self._check_room)
        return Ticket(jobs, self._runner.wake)

    def _check_room(self) -> None:
        """BusyError where no more may wait."""
        scheduler = self._runner.scheduler
        n_free = len(scheduler.slots) - len(scheduler.busy)
        n_waiting = len(scheduler.waiting)
        if n_waiting >= self._max_waiting + n_free:
            wait = self._seconds * (n_waiting + 1) / len(scheduler.slots)
            told = f"all slots are busy, and {n_waiting} requests wait already"
            raise BusyError(told, max(1.0, wait))

    def _go_on(self, job: Job) -> None:
        """With the next job of a request, on the service's thread."""
        self._runner.scheduler.waiting.add(job)

    def _note_seconds(self, seconds: float) -> None:
        self._seconds = _FORGETTING * self._seconds + (1 - _FORGETTING) * seconds


def _check_int(name: str, value: object, least: int | None) -> None:
    if not is_whole(value) or (least is not None and value < least):
        from_on = "" if least is None else f" from {least} on"
        raise RequestError(f"{name}: expected a whole number{from_on}, got {value!r}")


def _no_tokens(step: Step) -> bool:
    raise AssertionError("an embedding has no tokens")
