"""Every error that m40llm raises on purpose. Each says what was wanted, what came, and where.

The kinds answer one question: whose turn is it to act?
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class M40LLMError(Exception):
    """Base of all errors below; the command line prints its text and exits with 1."""


class ModelFileError(M40LLMError):
    """The user's model file is broken: the text names the offset, key or tensor."""


class UnsupportedModelError(ModelFileError):
    """The model file is sound, but it holds something that m40llm does not run."""


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """What is wrong with a model file names the file: a model may have others beside it."""
    try:
        yield
    except ModelFileError as error:
        if str(path) in str(error):
            raise
        raise type(error)(f"{path}: {error}") from error


class RequestError(M40LLMError):
    """The caller's request cannot be honoured: a bad parameter, too long a prompt."""


class BusyError(M40LLMError):
    """The queue is full, or the service is closing: the same request may be taken later.

    retry_after_s  seconds after which to come again, as far as that can be told
    """

    def __init__(self, text: str, retry_after_s: float = 1.0) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


class NotServingError(BusyError):
    """The service is closing, or its model is being loaded again: nobody is served just now."""


class DeadlineError(M40LLMError):
    """A request was given so many seconds, and they have passed.

    completion: a Completion, what a Service had made by then; None where it was not even asked
    """

    def __init__(self, text: str, completion: Any = None) -> None:
        super().__init__(text)
        self.completion = completion


class DeviceError(M40LLMError):
    """The device is missing, unfit, out of memory or failed."""


class PullError(M40LLMError):
    """A model could not be fetched: no network, no such file, a wrong checksum."""


class KernelContractError(M40LLMError):
    """A bug in m40llm: an op was called with arguments that break its contract."""
