"""What all requests share, and what is known of one of them."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, cast

from fastapi import Request

from m40llm.server.inbox import Inbox
from m40llm.server.keys import Keys
from m40llm.server.metrics import Metrics
from m40llm.server.settings import Settings

if TYPE_CHECKING:
    from m40llm.llm import LLM
    from m40llm.llm.service import Service
    from m40llm.text import Tokenizer

T = TypeVar("T")


class Serving:
    """A service, and how it is served. `is_closing`: it takes no more requests."""

    def __init__(self, service: "Service", settings: Settings) -> None:
        self.service, self.settings = service, settings
        self.keys, self.metrics, self.inbox = Keys(settings.keys), Metrics(service), Inbox()
        self.created = int(time.time())
        self.is_closing = False
        self.metrics_page: Callable[[], Awaitable[bytes]] = self._own_page
        self._cached: dict[Any, Any] = {}

    def cached(self, of: Callable[["Tokenizer"], T]) -> T:
        """of(tokenizer), made once: it may go through a whole vocabulary."""
        tokenizer, found = self._cached.get(of, (None, None))
        if tokenizer is not self.tokenizer:
            tokenizer, found = self.tokenizer, of(self.tokenizer)
            self._cached[of] = tokenizer, found
        return cast(T, found)

    async def _own_page(self) -> bytes:
        return self.metrics.page()

    @property
    def llm(self) -> "LLM":
        """The model; another one, of the same file, once a device has failed."""
        return self.service.llm

    @property
    def tokenizer(self) -> "Tokenizer":
        return self.service.llm.tokenizer


@dataclass
class Record:
    """One request: who asks, and what came of it, for the log and the metrics.

    close  what must be done once it has ended, however it did
    """

    request_id: str
    client: str
    begin_s: float = field(default_factory=time.perf_counter)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    ttft_s: float | None = None
    engine_s: float = 0.0  # of the longest answer, its time in the queue included
    code: str | None = None  # of the error that it was told
    model: str | None = None
    texts: dict[str, Any] = field(default_factory=dict)  # if prompts are logged
    close: list[Callable[[], None]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.begin_s


class ClientGoneError(Exception):
    """The client has closed the connection: there is nobody to answer."""


def head(service: "Service", settings: Settings) -> dict[str, Any]:
    """What a server says of itself when it is ready."""
    return {
        "model": settings.names[0],
        "models": list(settings.names),
        "device": service.llm.device_name,
        "slots": service.stats().n_slots,
        "max_seq_len": service.llm.max_seq_len,
    }


def serving_of(request: Request) -> Serving:
    return cast(Serving, request.app.state.serving)


def record_of(request: Request) -> Record:
    return cast(Record, request.scope["m40llm.record"])
