"""Runner: the thread that a service's requests run on, and the model that it keeps alive."""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from traceback import format_exc
from typing import Any, Final

from m40llm.engine.job import Job
from m40llm.engine.scheduler import Scheduler
from m40llm.errors import DeviceError, NotServingError, RequestError
from m40llm.llm.answers import Lent
from m40llm.llm.llm import LLM

_LOG: Final = logging.getLogger(__name__)
_LOADED_AGAIN: Final = "the device has failed; the model is being loaded again"


class Runner:
    """Rounds of a scheduler, until it is closed and nothing is left to do.

    how        arguments of the scheduler
    llm        the model of now; another one after the device was lost
    scheduler  its own
    failure    why nothing is served any more; empty while it is
    """

    def __init__(
        self, llm: LLM, how: Mapping[str, Any], reload: Callable[[], LLM] | None = None
    ) -> None:
        self._how, self._reload = how, reload
        self._work = threading.Event()
        self._lock = threading.Lock()  # of what follows
        self._is_closing = False
        self.failure = ""
        lent = llm.lend()
        self.llm, self.scheduler = llm, Scheduler(lent.engine, **how)
        self._lent: Lent | None = lent  # None while the model is loaded again
        self._thread = threading.Thread(target=self._serve, name="m40llm-service", daemon=True)
        self._thread.start()

    def open(self) -> Lent:
        """What requests are made with. Raises where none are taken."""
        if self.failure:
            raise DeviceError(self.failure)
        if self._is_closing:
            raise NotServingError("the service is closing")
        if self._lent is None:
            raise NotServingError(_LOADED_AGAIN, 10.0)
        return self._lent

    def take(self, lent: Lent, job: Job, check: Callable[[], None]) -> None:
        """A job that was made with what is lent, if `check` does not raise."""
        with self._lock:
            if self.open() is not lent:
                raise NotServingError(_LOADED_AGAIN)
            check()
            self.scheduler.waiting.add(job)
        self._work.set()

    def wake(self) -> None:
        """There is something to look at: a job that was cancelled."""
        self._work.set()

    def close(self, grace_s: float) -> None:
        """What is not done after so many seconds is cancelled."""
        with self._lock:
            self._is_closing = True
        self._work.set()
        self._thread.join(grace_s)
        while self._thread.is_alive():
            self.scheduler.cancel_all()
            self._work.set()
            self._thread.join(0.1)
        self.llm.close()

    def _serve(self) -> None:
        try:
            self._rounds()
        except BaseException as error:  # a panic of somebody's library, say: nothing waits for ever
            _LOG.exception("the service has failed")
            self._fail(f"the service has failed: {error!r}")

    def _rounds(self) -> None:
        while True:
            self._work.clear()  # before it looks: what comes meanwhile sets it again
            has_worked, why_lost = self._round()
            if why_lost:
                self._revive(why_lost)
                if self.failure:
                    return
            elif not has_worked:
                if self._is_closing and not len(self.scheduler.waiting):
                    return
                self._work.wait()

    def _round(self) -> tuple[bool, str]:
        """(whether there was something to do, why the device is lost). No error leaves here, whose
        traceback would hold on to the model."""
        try:
            return self.scheduler.run(), ""
        except Exception as error:
            _LOG.error("the device does not recover\n%s", format_exc())
            return False, str(error) or type(error).__name__

    def _revive(self, why: str) -> None:
        """The model is loaded anew, once the memory of the old one is free; what waits goes on."""
        with self._lock:
            lent, self._lent = self._lent, None
            waiting = self.scheduler.give_up()
        assert lent is not None
        names = [lent.adapters.name_of(job.adapter) for job in waiting]
        for job in waiting:
            job.adapter = None  # of the old device
        del lent
        self.llm.close()
        try:
            if self._reload is None or self._is_closing:
                raise DeviceError(why)
            llm = self._reload()
            lent = llm.lend()
            scheduler = Scheduler(lent.engine, **self._how)
        except Exception as error:
            self._fail(f"the device has failed, and cannot be opened again: {error}", waiting)
            return
        for job, name in zip(waiting, names, strict=True):
            if _rebound(job, name, lent):
                scheduler.waiting.add(job)
        with self._lock:
            self.llm, self.scheduler, self._lent = llm, scheduler, lent

    def _fail(self, why: str, waiting: Sequence[Job] = ()) -> None:
        """For good."""
        with self._lock:
            self.failure = why
            waiting = [*waiting, *self.scheduler.waiting.take_all()]
        for job in waiting:
            job.done(DeviceError(why))
        self.scheduler.fail(DeviceError(why))


def _rebound(job: Job, lora: str | None, lent: Lent) -> bool:
    """A job that was meant for the model before, whose context may have been a longer one."""
    try:
        lent.engine.check_ids(job.request.prompt)
        job.adapter = lent.adapters.named(lora)
    except RequestError as error:
        job.done(error)
        return False
    job.request.max_seq_len = lent.engine.max_seq_len
    return True
