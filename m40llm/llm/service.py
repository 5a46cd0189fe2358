"""Service: many requests at a time on one loaded model, from any thread."""

import logging
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from m40llm.engine.job import Job
from m40llm.engine.sampling_params import SamplingParams
from m40llm.engine.scheduler import Scheduler
from m40llm.engine.step import Step
from m40llm.errors import BusyError, DeviceError, RequestError
from m40llm.llm.answers import Lent, Prompt
from m40llm.llm.embed import Pooling, checked_pooling
from m40llm.llm.listeners import Listener, Told, VectorListener, VectorsTold
from m40llm.llm.llm import LLM
from m40llm.llm.stream import checked

_LOG: Final = logging.getLogger(__name__)
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

    An answer is the same, bit for bit, whatever else is under way (engine/scheduler.py). A device
    error fails the requests under way; what waits goes on, if need be on the model loaded anew.

    llm  the model, which answers nothing by itself any more
    """

    def __init__(
        self,
        llm: LLM,
        *,
        max_waiting: int = 64,
        chunk: int | None = None,
        reload: Callable[[], LLM] | None = None,
    ) -> None:
        if not isinstance(max_waiting, int) or max_waiting < 0:
            raise RequestError(f"max_waiting: expected a number from 0 on, got {max_waiting!r}")
        self._max_waiting, self._chunk, self._reload = max_waiting, chunk, reload
        self._work = threading.Event()
        self._lock = threading.Lock()  # of what follows
        self._is_closing = False
        self._failure = ""
        self._seconds = 1.0  # that a request takes, of late
        self._take(llm)
        self._thread = threading.Thread(target=self._serve, name="m40llm-service", daemon=True)
        self._thread.start()

    @classmethod
    def load(
        cls,
        path_or_alias: str | Path,
        *,
        slots: int = DEFAULT_SLOTS,
        max_waiting: int = 64,
        chunk: int | None = None,
        lora: dict[str, str | Path] | None = None,
        **how: Any,
    ) -> "Service":
        """A model file, `how` as for LLM.load; adapters by the names that requests call them by."""

        def load() -> LLM:
            llm = LLM.load(path_or_alias, slots=slots, **how)
            for name, path in (lora or {}).items():
                llm.load_lora(path, name)
            return llm

        return cls(load(), max_waiting=max_waiting, chunk=chunk, reload=load)

    def _take(self, llm: LLM) -> None:
        self.llm, lent = llm, llm.lend()
        self._lent: Lent | None = lent  # None while the model is loaded again
        self._scheduler = Scheduler(lent.engine, self._chunk)

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
        deadline_s  a DeadlineError is told after so many seconds
        client      whose it is: who has the fewest requests under way is served next

        RequestError for what is wrong with it, BusyError where no more may wait.
        """
        lent, tokenizer = self._open(), self.llm.tokenizer
        adapter = lent.adapters.named(lora)
        ids = tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        good = checked(lent.engine, tokenizer, ids, params, lent.constraints)
        answer = good.answer(tokenizer, lent.load_s)
        told = Told(answer, listen, self._note_seconds)
        request = lent.engine.request(good.prompt_ids, good.params, answer.clock, good.constraint)
        job = Job(request, told.tell, told.done, adapter=adapter, client=client, priority=priority)
        return self._enqueue([job], deadline_s)

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
        The texts run as requests of their own, as many at a time as there are slots."""
        engine, how = self._open().engine, checked_pooling(pooling)
        encode = self.llm.tokenizer.encode
        texts = [
            engine.check_ids(encode(one) if isinstance(one, str) else one, f"text {n}")
            for n, one in enumerate(prompts, 1)
        ]
        if not texts:
            raise RequestError("prompts: expected at least one text")
        told = VectorsTold(len(texts), how, normalise, listen)
        jobs = []
        for at, ids in enumerate(texts):
            request = engine.request(ids, SamplingParams())
            add, done = told.of(at)
            jobs.append(Job(request, _no_tokens, done, read=add, client=client, priority=priority))
        told.jobs = jobs
        return self._enqueue(jobs, deadline_s)

    def stats(self) -> Stats:
        scheduler = self._scheduler
        return Stats(
            n_slots=len(scheduler.slots),
            n_running=len(scheduler.busy),
            n_waiting=len(scheduler.waiting),
            kv_tokens=sum(slot.n_tokens for slot in scheduler.slots),
            kv_capacity=len(scheduler.slots) * self.llm.max_seq_len,
            failure=self._failure,
        )

    def close(self, grace_s: float = 0.0) -> None:
        """Takes no more requests; what is not done after so many seconds is cancelled. Then the
        model gives its memory back."""
        with self._lock:
            self._is_closing = True
        self._work.set()
        self._thread.join(grace_s)
        while self._thread.is_alive():
            self._scheduler.cancel_all()
            self._work.set()
            self._thread.join(0.1)
        self.llm.close()

    def __enter__(self) -> "Service":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _enqueue(self, jobs: list[Job], deadline_s: float | None) -> Ticket:
        if deadline_s is not None and not deadline_s > 0:
            raise RequestError(f"deadline_s: expected a number above 0, got {deadline_s!r}")
        for job in jobs:
            job.end_s = math.inf if deadline_s is None else job.request.begin_s + deadline_s
        with self._lock:
            self._open()
            scheduler = self._scheduler
            n_free = len(scheduler.slots) - len(scheduler.busy)
            n_waiting = len(scheduler.waiting)
            if n_waiting >= self._max_waiting + n_free:
                wait = self._seconds * (n_waiting + 1) / len(scheduler.slots)
                told = f"all slots are busy, and {n_waiting} requests wait already"
                raise BusyError(told, max(1.0, wait))
            for job in jobs:
                scheduler.waiting.add(job)
        self._work.set()
        return Ticket(jobs, self._work.set)

    def _open(self) -> Lent:
        if self._failure:
            raise DeviceError(self._failure)
        if self._is_closing:
            raise BusyError("the service is closing")
        if self._lent is None:
            raise BusyError("the device has failed; the model is being loaded again", 10.0)
        return self._lent

    def _note_seconds(self, seconds: float) -> None:
        self._seconds = _FORGETTING * self._seconds + (1 - _FORGETTING) * seconds

    def _serve(self) -> None:
        """Rounds, until it is closed and nothing is left to do."""
        while True:
            self._work.clear()  # before it looks: what comes meanwhile sets it again
            has_worked, why_lost = self._round()
            if why_lost:
                self._revive(why_lost)
                if self._failure:
                    return
            elif not has_worked:
                if self._is_closing:
                    return
                self._work.wait()

    def _round(self) -> tuple[bool, str]:
        """(whether there was something to do, why the device is lost). No error leaves here, whose
        traceback would hold on to the model."""
        try:
            return self._scheduler.run(), ""
        except Exception as error:
            _LOG.exception("the device does not recover")
            return False, str(error)

    def _revive(self, why: str) -> None:
        """The model is loaded anew, once the memory of the old one is free; what waits goes on."""
        with self._lock:
            waiting, self._lent = self._scheduler.give_up(), None
        self.llm.close()
        try:
            if self._reload is None:
                raise DeviceError(why)
            llm = self._reload()
        except Exception as error:
            with self._lock:
                self._failure = f"the device has failed, and cannot be opened again: {error}"
            for job in waiting:
                job.done(DeviceError(self._failure))
            return
        with self._lock:
            self._take(llm)
        for job in waiting:
            self._scheduler.waiting.add(job)


def _no_tokens(step: Step) -> bool:
    raise AssertionError("an embedding has no tokens")
