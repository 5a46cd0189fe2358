"""Answers: what the service says to one HTTP request, as an async iterator."""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import Request

from m40llm.engine.sampling_params import SamplingParams
from m40llm.errors import DeadlineError
from m40llm.llm.embed import Pooling
from m40llm.llm.results import Completion, StreamItem
from m40llm.server.errors import ApiError, closing
from m40llm.server.serving import ClientGoneError, record_of, serving_of

if TYPE_CHECKING:
    from m40llm.llm.service import Ticket

Batch = list[tuple[int, StreamItem | Completion]]  # with the number of the answer that it is of


@dataclass(frozen=True)
class Ask:
    """One answer that is wanted. `is_first`: of its prompt, which counts once."""

    prompt_ids: Sequence[int]
    params: SamplingParams
    is_first: bool = True


class Answers:
    """Iterate over it for what has come since the last time, in order, until all have ended.

    Whatever becomes of the request, what has not ended by its end is cancelled: slots are free
    again within a step. What waits here is no more than what the asks allow of tokens.
    """

    def __init__(self, request: Request, lora: str | None = None) -> None:
        self._serving, self._record = serving_of(request), record_of(request)
        self._lora = lora
        self._serving.inbox.open()
        self._record.close.append(self.close)
        self._tickets: list[Ticket] = []
        self._lock, self._is_closed = threading.Lock(), False
        self._waiting: list[tuple[int, Any]] = []
        self._n_open = 0
        self._woken: asyncio.Future[None] | None = None
        self._first_s: dict[int, float] = {}  # of each answer, when its first token came

    def submit(self, asks: Sequence[Ask]) -> None:
        """All of them, or none. Called in a thread: a grammar may take its time to be read.

        Raises what Service.submit raises.
        """
        service = self._serving.service
        if len(asks) > service.most_requests:
            most = f"this server takes {service.most_requests} at once"
            told = f"n: {len(asks)} answers in one request; {most}, those that wait included"
            raise ApiError(400, told, code="too_many_answers", param="n")
        for index, ask in enumerate(asks):
            take = partial(self._serving.inbox.put, self._take)
            ticket = service.submit(
                ask.prompt_ids,
                ask.params,
                listen=partial(_listen, take, index),
                lora=self._lora,
                deadline_s=self._seconds_left(),
                client=self._record.client,
            )
            self._add(ticket)
        self._record.prompt_tokens += sum(len(ask.prompt_ids) for ask in asks if ask.is_first)

    def embed(self, prompts: Sequence[Sequence[int]], pooling: Pooling, normalise: bool) -> None:
        """Vectors of all the prompts: one event, with a row for each."""
        take = partial(self._serving.inbox.put, self._take)
        ticket = self._serving.service.embed(
            prompts,
            pooling,
            normalise=normalise,
            listen=partial(_listen, take, 0),
            deadline_s=self._seconds_left(),
            client=self._record.client,
        )
        self._add(ticket)
        self._record.prompt_tokens += sum(map(len, prompts))

    def close(self) -> None:
        """Nobody listens any more; what has not ended is cancelled."""
        with self._lock:
            self._is_closed, tickets = True, self._tickets
            self._tickets = []
        for ticket in tickets:
            ticket.cancel()

    def __aiter__(self) -> "Answers":
        return self

    async def __anext__(self) -> Any:
        while not self._waiting:
            if self._n_open == 0:
                raise StopAsyncIteration
            self._woken = asyncio.get_running_loop().create_future()
            await self._woken
        errors = (n for n, (_, event) in enumerate(self._waiting) if isinstance(event, Exception))
        n = next(errors, len(self._waiting))
        if n == 0:
            raise self._waiting[0][1]
        batch, self._waiting = self._waiting[:n], self._waiting[n:]
        return batch

    def _add(self, ticket: "Ticket") -> None:
        with self._lock:
            self._n_open += 1
            is_closed = self._is_closed
            self._tickets.append(ticket)
        if is_closed:
            ticket.cancel()

    def _seconds_left(self) -> float | None:
        limit_s = self._serving.settings.time_limit_s
        if limit_s is None:
            return None
        if self._record.seconds >= limit_s:
            raise DeadlineError(f"the {limit_s:g} s that a request may take have passed")
        return limit_s - self._record.seconds

    def _take(self, item: tuple[int, Any]) -> None:
        """In the loop: the next event of one answer."""
        index, event = item
        if isinstance(event, StreamItem):
            self._note_token(index)
        else:
            with self._lock:
                self._n_open -= 1
            made = event.completion if isinstance(event, DeadlineError) else event
            if isinstance(made, Completion):
                self._note_end(index, made)
            if isinstance(event, Completion) and event.stop_reason == "cancelled":
                item = index, closing()  # not by us, who would not be listening
        if not self._is_closed:
            self._waiting.append(item)
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)

    def _note_token(self, index: int) -> None:
        if index in self._first_s:
            return
        self._first_s[index] = time.perf_counter()
        if self._record.ttft_s is None:
            self._record.ttft_s = self._record.seconds
            self._serving.metrics.ttft_s.observe(self._record.ttft_s)

    def _note_end(self, index: int, completion: Completion) -> None:
        metrics, timings = self._serving.metrics, completion.timings
        if not timings.prefill_s:  # it was ended in the queue
            return
        n_more = timings.generated_tokens - 1
        if n_more > 0 and index in self._first_s:
            metrics.tpot_s.observe((time.perf_counter() - self._first_s[index]) / n_more)
        metrics.queue_s.observe(timings.queue_s)
        metrics.prompt_tokens.inc(timings.prompt_tokens)
        metrics.cached_tokens.inc(timings.cached_tokens)
        metrics.generated_tokens.inc(timings.generated_tokens)
        engine_s = timings.queue_s + timings.prefill_s + timings.decode_s
        self._record.engine_s = max(self._record.engine_s, engine_s)
        self._record.generated_tokens += timings.generated_tokens
        self._record.cached_tokens += timings.cached_tokens


def _listen(take: Callable[[Any], None], index: int, event: Any) -> None:
    """On the service's thread."""
    take((index, event))


async def while_there(request: Request, work: Any) -> Any:
    """The work's result. ClientGoneError, and the work ended, where the client goes away first."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        for one in (task, gone):
            one.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
