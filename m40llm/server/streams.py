"""Answers that come bit by bit: Server-Sent Events, or one JSON object a line."""

import json
from collections.abc import AsyncIterator
from typing import Any, Final

from fastapi import Request
from sse_starlette.sse import EventSourceResponse

from m40llm.server.serving import record_of, serving_of
from m40llm.server.shell import told_of

_DATA: Final = {"type": "string", "description": "A chunk as JSON; of the last event [DONE]."}
_EVENT: Final = {"type": "object", "properties": {"data": _DATA}, "required": ["data"]}
AS_EVENTS: Final[dict[str, Any]] = {  # for the OpenAPI document: itemSchema is what each event is
    "content": {"text/event-stream": {"itemSchema": _EVENT}}
}
DONE: Final = b"data: [DONE]\r\n\r\n"
PING_S: Final = 15  # comments that keep the connection open while a prompt is read
_BLANK: Final = b"\r\n\r\n"


def event(data: Any) -> bytes:
    """One event of a stream."""
    return b"data: " + json.dumps(data).encode("ascii") + _BLANK


def event_stream(request: Request, pieces: AsyncIterator[bytes]) -> EventSourceResponse:
    """Of pieces that are whole events. An error on the way is the last event."""
    seconds = serving_of(request).settings.send_timeout_s
    return EventSourceResponse(_with_errors(request, pieces), ping=PING_S, send_timeout=seconds)


def line_stream(request: Request, pieces: AsyncIterator[bytes]) -> EventSourceResponse:
    """Of pieces that are whole lines. An error on the way is the last line."""
    return EventSourceResponse(
        _with_errors(request, pieces, as_line=True),
        ping=0,
        media_type="application/jsonl",
        send_timeout=serving_of(request).settings.send_timeout_s,
    )


async def _with_errors(
    request: Request, pieces: AsyncIterator[bytes], as_line: bool = False
) -> AsyncIterator[bytes]:
    try:
        async for piece in pieces:
            yield piece
    except Exception as error:
        body = told_of(error, record_of(request)).body
        yield json.dumps(body).encode("ascii") + b"\n" if as_line else event(body)
