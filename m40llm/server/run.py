"""Serving until told to end: the socket, the signals, the end with grace."""

import asyncio
import ipaddress
import logging
import os
import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from m40llm.errors import RequestError
from m40llm.server.app import create_app
from m40llm.server.connections import protocol_of
from m40llm.server.log import configure, log
from m40llm.server.restart import inherited, restart
from m40llm.server.serving import Serving
from m40llm.server.settings import Settings

if TYPE_CHECKING:
    from m40llm.llm.service import Service

_WATCH_S = 0.2  # between two looks at whether the service works
_LAST_BYTES_S = 2  # for answers that are made, once nothing is under way any more


def bound(host: str, port: int) -> socket.socket:
    """A socket at the address, before a model is loaded for nothing, or the one that the process
    before has left. RequestError says why not."""
    if left := inherited():
        return left
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise RequestError(f"host: {host!r} is no address of this machine: {error}") from error
    family, kind, protocol, _, address = found[0]
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(0)  # here and not later: two that are bound only do not see each other
    except OSError as error:
        made.close()
        told = f"{port} on {host} cannot be had: {error.strerror}"
        raise RequestError(f"port: {told}; --port 0 takes a free one") from error
    return made


def is_loopback(host: str) -> bool:
    """Whether an address, however it is spelled, is of this machine alone."""
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False  # `bound` says why
    return all(ipaddress.ip_address(at[0]).is_loopback for *_, at in found)


def url_of(at: socket.socket) -> str:
    host, port = at.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(
    service: "Service", settings: Settings, at: socket.socket, ready: Callable[[], None]
) -> None:
    """Serves until SIGTERM or SIGINT; `ready` is called when the first request can come.

    Where the device is lost to this process, another one goes on: see restart.py, and what it
    raises.
    """
    configure()
    app = create_app(service, settings)
    server = Server(config_of(app), app.state.serving, ready)
    with at.dup() as left:  # uvicorn closes its own
        server.run(sockets=[at])
        if server.failure:
            restart(left, server.failure)


def config_of(app: FastAPI) -> uvicorn.Config:
    """How uvicorn serves an application of `create_app`."""
    serving: Serving = app.state.serving
    proxies = serving.settings.trusted_proxies
    return uvicorn.Config(
        Connection(app),
        http=protocol_of(serving),
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(proxies),
        forwarded_allow_ips=list(proxies),
        lifespan="on",
        ws="none",
        timeout_graceful_shutdown=_LAST_BYTES_S,
    )


class Connection:
    """Around the application: lets it end a connection whose client takes nothing.

    ASGI has no message for that. uvicorn's `send` belongs to an object that knows the transport.
    """

    def __init__(self, app: FastAPI) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        transport = getattr(getattr(send, "__self__", None), "transport", None)
        if transport is not None:
            scope["m40llm.transport"] = transport
        await self._app(scope, receive, send)


class Server(uvicorn.Server):
    """uvicorn's, which ends with grace.

    The first signal: no more requests are taken, and /health says so; what is under way has
    `grace_s` to end, then it is cancelled, and told so. The second ends the process at once.

    failure  why the service has ended by itself; empty while it has not
    """

    def __init__(self, config: uvicorn.Config, serving: Serving, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._serving, self._ready = serving, ready
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self.failure = ""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self._watching = asyncio.ensure_future(self._watch())
        self._ready()

    async def _watch(self) -> None:
        """All that was under way has been told when a service has failed; answers go out at the
        end."""
        while not (failure := self._serving.service.stats().failure):
            await asyncio.sleep(_WATCH_S)
        log("failed", logging.ERROR, message=failure)
        self._serving.is_closing = self.should_exit = True
        self.failure = failure

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._serving.is_closing or self._loop is None:
            os._exit(128 + sig)
        self._serving.is_closing = True
        self._loop.call_soon_threadsafe(self._begin_end, signal.Signals(sig).name)

    def _begin_end(self, why: str) -> None:
        grace_s = self._serving.settings.grace_s
        log("closing", reason=why, grace_s=grace_s)
        self._ending = asyncio.ensure_future(self._end(grace_s))

    async def _end(self, grace_s: float) -> None:
        try:
            await asyncio.to_thread(self._serving.service.close, grace_s)
        except Exception as error:
            log("the service did not close", logging.ERROR, exc=error)
        self.should_exit = True
