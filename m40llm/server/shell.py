"""Shell: what every request passes through: its id, its key, its body's limit, its log line."""

import asyncio
import logging
import re
import secrets
from typing import Final

from sse_starlette.sse import SendTimeoutError
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from m40llm.errors import KernelContractError, M40LLMError
from m40llm.server.errors import ApiError, closing, of_error
from m40llm.server.files import FILES
from m40llm.server.log import log
from m40llm.server.serving import ClientGoneError, Record, Serving

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_OPEN: Final = {"/health", "/openapi.json", "/", *(f"/{name}" for name in FILES)}
_WHILE_CLOSING: Final = {"/health", "/metrics"}
_QUIET: Final = {"/health", "/metrics"}  # asked every few seconds: not logged unless they fail
GONE: Final = 499  # the status, in log and metrics, of a request whose client went away


class Shell:
    """ASGI middleware around all routes: whatever is raised within ends as an answer here."""

    def __init__(self, app: ASGIApp, serving: Serving) -> None:
        self._app, self._serving = app, serving
        self._watching: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        record = Record(_request_id(headers), client=(scope.get("client") or ["unknown"])[0])
        scope["m40llm.record"] = record
        reply = _Reply(send, record.request_id, is_head=scope["method"] == "HEAD")
        if reply.is_head:  # routes know GET alone
            scope = {**scope, "method": "GET"}
        try:
            await self._answer(scope, headers, record, receive, reply)
        except (ClientGoneError, SendTimeoutError) as error:
            reply.status = GONE
            if isinstance(error, SendTimeoutError):
                await _cut(scope, record)
        except Exception as error:
            told = told_of(error, record)
            if not reply.is_started:
                await response_of(told)(scope, receive, reply)
            elif not isinstance(error, ApiError | M40LLMError):
                raise
        finally:
            for close in record.close:
                close()
            self._note(scope, record, reply)

    async def _answer(
        self, scope: Scope, headers: Headers, record: Record, receive: Receive, reply: "_Reply"
    ) -> None:
        path = scope["path"]
        if self._serving.is_closing and path not in _WHILE_CLOSING:
            raise closing()
        _check_host(headers.get("host", ""), self._serving.settings.hosts)
        is_open = path in _OPEN or (path == "/metrics" and self._serving.settings.open_metrics)
        if self._serving.keys and not is_open:
            record.client = self._client(headers.get("authorization"))
        body = await self._body(headers, receive)
        await self._app(scope, _Replay(body, receive), reply)
        self._watch(scope)

    def _watch(self, scope: Scope) -> None:
        """An answer that is made may lie in the server's memory for as long as nobody takes it."""
        transport = scope.get("m40llm.transport")
        if transport is not None and transport.get_write_buffer_size():
            seconds = self._serving.settings.send_timeout_s
            task = asyncio.ensure_future(_until_taken(transport, seconds))
            self._watching.add(task)
            task.add_done_callback(self._watching.discard)

    def _client(self, authorization: str | None) -> str:
        client = self._serving.keys.client_of(authorization)
        if client is None:
            what = "Incorrect API key provided" if authorization else "no API key was provided"
            ask = {"www-authenticate": "Bearer"}
            told = f"{what}; expected a header Authorization: Bearer KEY"
            raise ApiError(401, told, code="invalid_api_key", headers=ask)
        return client

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        """The whole body, of which no more is read than is allowed."""
        most, seconds = self._serving.settings.max_body_bytes, self._serving.settings.body_timeout_s
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > most:
            raise _too_large(most)
        try:
            async with asyncio.timeout(seconds):
                return await _whole_body(receive, most)
        except TimeoutError:
            told = f"the body did not come within {seconds:g} s"
            close = {"connection": "close"}
            raise ApiError(408, told, code="body_timeout", headers=close) from None

    def _note(self, scope: Scope, record: Record, reply: "_Reply") -> None:
        route, metrics = scope.get("route"), self._serving.metrics
        endpoint = route.path if isinstance(route, Route) else "none"
        status = str(reply.status or GONE)
        metrics.requests.labels(endpoint, status).inc()
        if record.code is not None:
            metrics.errors.labels(record.code).inc()
        if endpoint in _QUIET and status == "200":
            return
        told = {
            "request_id": record.request_id,
            "client": record.client,
            "method": "HEAD" if reply.is_head else scope["method"],
            "endpoint": endpoint,
            "status": int(status),
            "seconds": round(record.seconds, 6),
            "model": record.model,
            "error": record.code,
            "prompt_tokens": record.prompt_tokens or None,
            "cached_tokens": record.cached_tokens or None,
            "generated_tokens": record.generated_tokens or None,
            "engine_s": round(record.engine_s, 6) or None,
            "ttft_s": None if record.ttft_s is None else round(record.ttft_s, 6),
            **record.texts,
        }
        log("request", **{key: value for key, value in told.items() if value is not None})


class _Reply:
    """`send`, with the headers that every answer has; knows the status. To a HEAD it sends what a
    GET gets, without the body."""

    def __init__(self, send: Send, request_id: str, *, is_head: bool) -> None:
        self._send, self._request_id, self.is_head = send, request_id, is_head
        self.status = 0

    @property
    def is_started(self) -> bool:
        return self.status > 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self._request_id
            headers["x-content-type-options"] = "nosniff"
        elif self.is_head and message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await self._send(message)


class _Replay:
    """`receive` once the body has been read: the body, and then what comes after it."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Message:
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}


def told_of(error: Exception, record: Record) -> ApiError:
    """What the client is told; what it must not know goes to the log."""
    told = of_error(error)
    record.code = told.code or str(told.status)
    is_ours = isinstance(error, ApiError | M40LLMError)
    if not is_ours or isinstance(error, KernelContractError):
        log("internal error", logging.ERROR, exc=error, request_id=record.request_id)
    elif told.status == 500:
        log("failure", logging.ERROR, request_id=record.request_id, message=str(error))
    return told


def response_of(error: ApiError) -> Response:
    return Response(error.content, error.status, error.headers, "application/json")


async def handle(request: Request, error: Exception) -> Response:
    """FastAPI's handler of what it would otherwise answer itself."""
    return response_of(told_of(error, request.scope["m40llm.record"]))


def _request_id(headers: Headers) -> str:
    """The client's own, if it is one that a log line can hold; else a new one."""
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"


def _check_host(header: str, hosts: tuple[str, ...]) -> None:
    """ApiError for a name that is not ours."""
    name = re.sub(r":\d*$", "", header).strip("[]").lower()
    if hosts and name and name not in hosts:  # a browser always sends one
        told = f"Host: expected {', '.join(hosts)}, got {name!r}; --allowed-host names another"
        raise ApiError(403, told, code="host_not_allowed")


def _too_large(most: int) -> ApiError:
    told = f"the body is larger than {most:,} bytes"
    return ApiError(413, told, code="body_too_large", headers={"connection": "close"})


async def _whole_body(receive: Receive, most: int) -> bytes:
    body, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        body += message.get("body", b"")
        if len(body) > most:
            raise _too_large(most)
        more = message.get("more_body", False)
    return bytes(body)


async def _until_taken(transport: asyncio.Transport, seconds: float) -> None:
    """Ends a connection of whose buffer nothing has been taken for so long."""
    left = transport.get_write_buffer_size()
    while left:
        await asyncio.sleep(seconds)
        before, left = left, transport.get_write_buffer_size()
        if left >= before:
            transport.abort()
            return


async def _cut(scope: Scope, record: Record) -> None:
    """Ends the connection of a client that takes nothing, whatever is left in its buffer."""
    record.code = "send_timeout"
    transport = scope.get("m40llm.transport")  # run.py puts it there
    if transport is not None:
        transport.abort()
        await asyncio.sleep(0)  # the server hears of it
