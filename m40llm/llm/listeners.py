"""Who is told of a service's requests: steps become text, hidden states vectors."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from m40llm.engine.job import Job
from m40llm.engine.step import Step
from m40llm.errors import M40LLMError, RequestError
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
    """One of ours; what was not raised on purpose is logged with its traceback."""
    if isinstance(error, M40LLMError):
        return error
    _LOG.error("a request has failed", exc_info=error)
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
        if error is not None:
            _heard(self._listen, known_error(error))
            return
        self._answer.reason = self._answer.reason or "cancelled"
        clock = self._answer.clock
        self._note_seconds(clock.prefill_s + clock.decode_s)
        _heard(self._listen, self._answer.completion)


class VectorsTold:
    """The listener of some texts' vectors, which is told once."""

    def __init__(
        self, n_texts: int, pooling: Pooling, normalise: bool, listen: VectorListener
    ) -> None:
        self._pools = [Pool(pooling) for _ in range(n_texts)]
        self._n_left, self._normalise, self._listen = n_texts, normalise, listen
        self._is_told = False
        self.jobs: Sequence[Job] = ()  # all of them: none goes on where one has failed

    def of(self, at: int) -> tuple[Callable[[NDArray[Any]], None], Callable[..., None]]:
        """(read, done) of the job of a text."""
        return self._pools[at].add, lambda error: self._done(at, error)

    def _done(self, at: int, error: Exception | None) -> None:
        if error is None and self.jobs[at].is_cancelled:
            error = RequestError("the request was cancelled")
        self._n_left -= 1
        if self._is_told:
            return
        if error is None and self._n_left:
            return
        self._is_told = True
        for job in self.jobs:
            job.is_cancelled = True
        try:
            _heard(self._listen, self._vectors() if error is None else known_error(error))
        except M40LLMError as of_vectors:
            _heard(self._listen, of_vectors)

    def _vectors(self) -> NDArray[np.float32]:
        return np.stack([finished(pool.vector, self._normalise) for pool in self._pools])
