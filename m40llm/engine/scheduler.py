"""Continuous batching: many requests on one model, each in a slot of the KV cache.

A round reads one chunk of one prompt, then makes the next token of every other slot. So a prompt,
however long, delays the others' tokens by one chunk at a time, and requests join and leave between
any two tokens.

An answer does not depend on what else is under way, bit for bit:

- A prefill has rows of one prompt only, cut at multiples of the chunk from its beginning on.
- Only whole chunks that a prefill computed serve another prompt: their K and V are those that it
  would compute itself. What decode has put there is rounded otherwise, and is computed again.
- Decode gives a row the bits that it has alone: on cpu by products that do (`Ops.alike_rows`), on
  a card since a step always has the same number of rows, of which some may repeat another. Without
  `batch_invariant` a card's step has as many as are needed.
- A choice depends on the request's own logits, seed and tokens.
"""

import time
from collections.abc import Sequence
from itertools import groupby
from typing import Final

import numpy as np
from numpy.typing import NDArray

from m40llm.device.decoder import Answer
from m40llm.engine.decode_step import heed, step_of
from m40llm.engine.device_slots import DeviceSlots
from m40llm.engine.engine import Engine
from m40llm.engine.job import Job
from m40llm.engine.sampling import Logits
from m40llm.engine.slot import Slot, best_slot, step_rows
from m40llm.engine.step import Step, check_finite
from m40llm.engine.waiting import Waiting
from m40llm.errors import RequestError
from m40llm.model.batch import Batch

CHUNKS: Final = {"cpu": 64}  # tokens: a quarter of a second of a model of 135M on two cores
CHUNK_OF_CARDS: Final = 256
_POLL_S: Final = 100e-6
Made = tuple[Slot, Job, Step]  # a token that nobody has heard of yet


class Scheduler:
    """Runs jobs on an engine's model, whose other requests must wait. One thread calls `run`, any
    may add to `waiting` or set a job's `is_cancelled`.

    chunk            tokens of a prompt that are read at once
    batch_invariant  an answer's bits do not depend on what else is under way
    """

    def __init__(
        self, engine: Engine, chunk: int | None = None, *, batch_invariant: bool = True
    ) -> None:
        self._engine, self._model = engine, engine.model
        wanted = CHUNKS.get(self._model.ops.name, CHUNK_OF_CARDS) if chunk is None else chunk
        if wanted < 1:
            raise RequestError(f"chunk: expected at least 1 token, got {wanted}")
        self.chunk = min(wanted, self._model.workspace.max_tokens)
        self.slots = [Slot(index) for index in range(self._model.kv.n_seqs)]
        self._batch_invariant = batch_invariant
        self._on_device = DeviceSlots(engine, len(self.slots), batch_invariant=batch_invariant)
        self._step_rows = step_rows(engine.model)
        self.waiting = Waiting()
        self._n_begun = 0
        self._last_read = 0  # slot
        self._has_failed = False
        engine.forget()

    @property
    def busy(self) -> list[Slot]:
        """Slots at work."""
        return [slot for slot in self.slots if slot.job is not None]

    def run(self) -> bool:
        """One round; False where there is nothing to do.

        What fails, fails the jobs at work, and the next round begins anew. DeviceError where it
        cannot, since the device does not recover.
        """
        if self._has_failed:
            self._model.recover()
            self._has_failed = False
        try:
            self._end_unwanted()
            self._admit()
            if not self.busy:
                return False
            has_read, has_decoded = self._read_chunk(), self._decode_on_host()
            self._decode_on_device(may_wait=not has_read and not has_decoded)
        except Exception as error:
            self._has_failed = True  # the cache is not to be trusted, either
            self.fail(error)
        return True

    def fail(self, error: Exception) -> None:
        """Ends all that is at work, and forgets what is cached."""
        jobs = [slot.job for slot in self.slots]
        self.slots = [Slot(index) for index in range(len(self.slots))]
        for job in filter(None, jobs):
            job.done(error)

    def give_up(self) -> list[Job]:
        """All that waits, for who goes on with it elsewhere. Nothing holds on to the model."""
        del self._engine, self._model, self._on_device
        return self.waiting.take_all()

    def cancel_all(self) -> None:
        self.waiting.cancel_all()
        for slot in self.busy:
            if slot.job is not None:
                slot.job.is_cancelled = True

    def _end_unwanted(self) -> None:
        for slot in self.busy:
            if slot.job is not None and slot.job.is_unwanted:
                self._end(slot, slot.job.why_unwanted())
        for job in self.waiting.take_unwanted():
            job.done(job.why_unwanted())

    def _admit(self) -> None:
        while len(self.busy) < len(self.slots):
            job = self.waiting.take([slot.job.client for slot in self.slots if slot.job])
            if job is None:
                return
            try:
                self._begin(job)
            except Exception:
                self.waiting.put_back(job)
                raise

    def _begin(self, job: Job) -> None:
        slot = best_slot(self.slots, job, self.chunk, lowest=not self._batch_invariant)
        assert slot is not None
        self._copy_prefix(slot, job)
        self._n_begun += 1
        slot.give(job, self.chunk, self._n_begun)
        self._model.kv.truncate(slot.index, slot.n_read)
        clock = job.request.clock
        clock.n_cached = slot.n_read
        clock.queue_s = time.perf_counter() - job.request.begin_s

    def _copy_prefix(self, slot: Slot, job: Job) -> None:
        """From a slot at work that has more of the prompt than any that is free."""
        other = max(self.slots, key=lambda s: s.n_shared(job, self.chunk))
        n = other.n_shared(job, self.chunk)
        if n > slot.n_shared(job, self.chunk):
            self._on_device.make_way(self.slots)
            self._model.kv.copy_prefix(other.index, slot.index, n)
            slot.whole_ids, slot.adapter = other.whole_ids[:n], other.adapter

    def _end(self, slot: Slot, error: Exception | None = None) -> None:
        job = slot.job
        assert job is not None
        if slot.is_on_device:
            self._on_device.cancel(slot)
        slot.job = None
        job.done(error)

    def _read_chunk(self) -> bool:
        """The next chunk of a prompt; prompts take turns. Whether there was one."""
        reading = [slot for slot in self.slots if slot.is_reading]
        if not reading:
            return False
        n_slots = len(self.slots)
        slot = min(reading, key=lambda s: (s.index - self._last_read - 1) % n_slots)
        self._last_read = slot.index
        job = slot.job
        assert job is not None
        prompt, first = job.request.prompt, slot.n_read
        ids = prompt[first : first + self.chunk]
        is_last = first + len(ids) == len(prompt)
        rows = self._forward(job, slot.index, first, ids, is_last=is_last)
        slot.note_read(ids, self.chunk)
        clock = job.request.clock
        clock.prefill_s = time.perf_counter() - job.request.begin_s - clock.queue_s
        if job.read is not None:
            job.read(rows)
            if is_last:
                self._end(slot)
        elif is_last:
            made = self._chosen(slot, rows[0])
            self._tell([made] if made else [])
            self._hand_over(slot)
        return True

    def _forward(
        self, job: Job, seq: int, first: int, ids: list[int], *, is_last: bool
    ) -> NDArray[np.float32]:
        """What is wanted of a chunk: hidden states of all rows, logits of the last; no rows where
        nothing is, and then nothing is waited for."""
        model = self._model
        self._on_device.make_way(self.slots)
        model.adapter = job.adapter
        if is_last and job.read is None:
            return np.asarray(model.ops.read(model.forward(Batch.of((seq, first, ids)))))
        hidden = model.hidden(Batch.of((seq, first, ids), logits="none"))
        if job.read is None:
            return np.empty((0, 0), np.float32)
        return np.asarray(model.ops.read(hidden))

    def _hand_over(self, slot: Slot) -> None:
        """To the device's decoder, where that can make the rest."""
        job = slot.job
        if job is None or job.adapter is not None or self._engine.form_of(job.request) is None:
            return
        try:
            self._on_device.begin(slot, self.slots)
        except RequestError as error:  # of the constraint: no token may come
            self._end(slot, error)

    def _decode_on_host(self) -> bool:
        """The next token of each slot that the host decodes. Whether there were any."""
        slots = [s for s in self.busy if not s.is_reading and not s.is_on_device]
        slots.sort(key=lambda s: id(s.adapter))
        made: list[Made] = []
        for _, group in groupby(slots, key=lambda s: id(s.adapter)):
            of_adapter = list(group)
            for at in range(0, len(of_adapter), self._step_rows):
                made += self._decode(of_adapter[at : at + self._step_rows])
        self._tell(made)
        return bool(slots)

    def _decode(self, slots: Sequence[Slot]) -> list[Made]:
        requests = [slot.job.request for slot in slots if slot.job is not None]
        rows = [(s.index, r.last_pos, r.ids[-1]) for s, r in zip(slots, requests, strict=True)]
        is_free = self._model.ops.alike_rows or not self._batch_invariant
        n_rows = len(rows) if is_free else self._step_rows
        self._on_device.make_way(self.slots)
        self._model.adapter = slots[0].adapter
        logits = self._model.ops.read(self._model.forward(Batch.decode(rows, n_rows)))
        made = (self._chosen(*each) for each in zip(slots, logits, strict=False))
        return [one for one in made if one]  # rows that repeat another are behind all slots'

    def _chosen(self, slot: Slot, logits: Logits) -> Made | None:
        """The next token of the slot; what goes wrong there concerns no other."""
        job = slot.job
        assert job is not None
        try:
            check_finite(logits)
            token_id = job.request.chain.choose(logits, job.request.ids)
            step = job.request.add(token_id, logits)
        except Exception as error:
            self._end(slot, error)
            return None
        return slot, job, step

    def _tell(self, made: Sequence[Made]) -> None:
        """All of a round at its end: who is told wakes other threads, which would be in the way of
        what is left to do."""
        for slot, job, step in made:
            if slot.job is not job:  # it was ended by the token before
                continue
            try:
                wants_more = job.tell(step)
            except Exception as error:
                self._end(slot, error)
                continue
            if step.stop_reason or not wants_more:
                self._end(slot)

    def _decode_on_device(self, *, may_wait: bool) -> None:
        if not any(slot.is_on_device for slot in self.slots):
            return
        # A launch that goes on would be told to end by the next chunk, before it has begun.
        is_reading = any(slot.is_reading for slot in self.slots)
        answers = self._on_device.advance(self.slots, one_step=is_reading)
        made = (self._heard(self.slots[answer.slot], answer) for answer in answers)
        self._tell([one for one in made if one])
        if may_wait and not answers:
            time.sleep(_POLL_S)

    def _heard(self, slot: Slot, answer: Answer) -> Made | None:
        """What the device has made; of a constrained slot it waits for the next mask."""
        job = slot.job
        if job is None or not slot.is_on_device:  # it was ended by what came before
            return None
        slot.is_on_device = answer.done is None
        try:
            heed(self._on_device.decoder, answer, job.request.constraint)
        except Exception as error:
            self._end(slot, error)
            return None
        job.request.note(answer.token_id)
        return slot, job, step_of(answer)
