"""Who is told of a service's requests: steps become text, hidden states vectors."""

import logging
from collections.abc import Callable, Sequence
from copy import copy
from traceback import format_exception
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from m40llm.engine.job import Job
from m40llm.engine.step import Step
from m40llm.errors import DeadlineError, M40LLMError, RequestError
from m40llm.llm.embed import Pool, Pooling, finished
from m40llm.llm.results import Completion, StreamItem
from m40llm.llm.stream import Answer

_LOG: Final = logging.getLogger(__name__)
Listener = Callable[[StreamItem | Completion | M40LLMError], None]
VectorListener = Callable[[NDArray[np.float32] | M40LLMError], None]


def _heard(listen: Callable[[Any], None], event: Any) -> bool:
    """False where the listener fails: nobody hears what else there is to tell."""
    try:
        listen(event)
    except Exception:
        _LOG.exception("a listener has failed")
        return False
    return True


def known_error(error: Exception) -> M40LLMError:
    """One of ours, new: without a traceback, which would hold on to the model, and everybody's own.
    What was not raised on purpose is logged."""
    if isinstance(error, M40LLMError):
        return copy(error)
    told = "".join(format_exception(error))  # a log's record must not hold on to the model, either
    _LOG.error("a request has failed\n%s", told)
    return M40LLMError(f"internal error: {type(error).__name__}: {error}")


class Told:
    """One answer's listener."""

    def __init__(
        self, answer: Answer, listen: Listener, note_seconds: Callable[[float], None]
    ) -> None:
        self._answer, self._listen, self._note_seconds = answer, listen, note_seconds

    def tell(self, step: Step) -> bool:
        """Whether it goes on."""
        item = self._answer.add(step)
        return _heard(self._listen, item) and self._answer.reason is None

    def done(self, error: Exception | None) -> None:
        if error is not None and not isinstance(error, DeadlineError):
            _heard(self._listen, known_error(error))
            return
        if self._answer.reason is not None:
            clock = self._answer.clock
            self._note_seconds(clock.prefill_s + clock.decode_s)
        self._answer.end()
        made = self._answer.completion
        _heard(self._listen, made if error is None else DeadlineError(str(error), made))


class VectorsTold:
    """The listener of some texts' vectors, which is told once. The texts are read one after the
    other: prefills of several do not go together, and nobody else waits for all of them."""

    def __init__(
        self,
        n_texts: int,
        pooling: Pooling,
        normalise: bool,
        listen: VectorListener,
        enqueue: Callable[[Job], None],
    ) -> None:
        self._pools = [Pool(pooling) for _ in range(n_texts)]
        self._normalise, self._listen, self._enqueue = normalise, listen, enqueue
        self.jobs: Sequence[Job] = ()  # of the texts; the first is enqueued by who made them

    def of(self, at: int) -> tuple[Callable[[NDArray[Any]], None], Callable[..., None]]:
        """(read, done) of the job of a text."""
        return self._pools[at].add, lambda error: self._done(at, error)

    def _done(self, at: int, error: Exception | None) -> None:
        if error is None and self.jobs[at].is_cancelled:
            error = RequestError("the request was cancelled")
        if error is not None:
            _heard(self._listen, known_error(error))
        elif at + 1 < len(self.jobs):
            self._enqueue(self.jobs[at + 1])
        else:
            try:
                vectors = [finished(pool.vector, self._normalise) for pool in self._pools]
            except M40LLMError as of_vectors:
                _heard(self._listen, known_error(of_vectors))
            else:
                _heard(self._listen, np.stack(vectors))
