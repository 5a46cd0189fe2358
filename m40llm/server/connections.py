"""What a connection may cost before and between its requests, which the application never sees.

uvicorn bounds the time between two requests, and nothing else: a client that sends a byte now and
then keeps a connection for as long as it likes, and anybody may have any number of them.
"""

import asyncio
from http import HTTPStatus
from typing import ClassVar, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from m40llm.server.errors import ApiError
from m40llm.server.serving import Serving

_LINGER_S: Final = 1.0  # closed at once, with its request unread, it would not see the answer
_MOST_REFUSED: Final = 64  # that linger; more are closed unanswered


def protocol_of(serving: Serving) -> type[H11Protocol]:
    """The protocol of one server's connections, for uvicorn."""
    return type("Protocol", (Bounded,), {"serving": serving, "refused": set()})


class Bounded(H11Protocol):
    """A connection whose next head must be whole `head_timeout_s` after it was opened, or after the
    first byte of that head; one of at most `max_connections`.

    No time runs while a request is under way, whatever its answer takes. What the client still
    sends of a body when the answer has been given is borne as long as a head.
    """

    serving: ClassVar[Serving]
    refused: ClassVar[set[H11Protocol]]
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.serving.settings.max_connections:
            self._refuse()
        else:
            self._time_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        self.refused.discard(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self not in self.refused:
            super().data_received(data)
            self._time_head()

    def send_400_response(self, msg: str) -> None:
        """As uvicorn's, in the form that all errors have here."""
        self._write(ApiError(400, msg, code="invalid_http"))
        self.transport.close()

    def _time_head(self) -> None:
        is_answered = self.cycle is None or self.cycle.response_complete
        if not is_answered or self.transport.is_closing():
            self._stop()
        elif self._timer is None:
            seconds = self.serving.settings.head_timeout_s
            self._timer = self.loop.call_later(seconds, self._head_late)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _head_late(self) -> None:
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            seconds = self.serving.settings.head_timeout_s
            told = f"the head of the request did not come within {seconds:g} s"
            self._write(ApiError(408, told, code="head_timeout"))
        self.transport.close()

    def _refuse(self) -> None:
        self.connections.discard(self)
        if len(self.refused) >= _MOST_REFUSED:
            self.transport.abort()
            return
        self.refused.add(self)
        most = self.serving.settings.max_connections
        told = f"there are {most} connections, as many as this server takes"
        again = {"retry-after": "1"}
        self._write(ApiError(503, told, code="too_many_connections", headers=again))
        self.transport.write_eof()
        self._timer = self.loop.call_later(_LINGER_S, self.transport.abort)

    def _write(self, error: ApiError) -> None:
        self.serving.metrics.errors.labels(error.code).inc()
        content = error.content
        headers = {
            "content-type": "application/json",
            "content-length": str(len(content)),
            "connection": "close",
            **error.headers,
        }
        lines = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self.transport.write("\r\n".join([*lines, "", ""]).encode("ascii") + content)
