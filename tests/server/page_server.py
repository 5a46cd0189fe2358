"""Serves the page beside a scripted /v1: what the last message says is what the server does.

`/answer TEXT`            streams TEXT, cut into pieces of three bytes: also within a character
`/slow N`                 N words, 30 ms apart          `/wait`   nothing, until the client goes
`/status CODE SECONDS`    this error, with Retry-After  `/late`   an error in mid-stream
`/cut`                    the stream ends early         `/reset`  the connection breaks
`/raw BYTES`              these bytes of the stream, \\n and \\r escaped
anything else             is answered with itself
"""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

import m40llm

PAGE = Path(m40llm.__file__).parent / "server" / "page"
POLICY = (
    b"default-src 'self'; base-uri 'none'; object-src 'none'; form-action 'self'; "
    b"frame-ancestors 'none'"
)
CODES = {401: "invalid_api_key", 429: "rate_limit_exceeded", 400: "context_length_exceeded"}


class Script:
    """What the server demands, and what it has seen."""

    def __init__(self) -> None:
        self.key = ""
        self.bodies: list[dict[str, Any]] = []
        self.n_gone = 0  # streams that the client left

    def refused(self, request: Request) -> Response | None:
        if not self.key or request.headers.get("authorization") == f"Bearer {self.key}":
            return None
        return error(401, "No key, or not one of this server's.")

    async def models(self, request: Request) -> Response:
        model = {"id": "SmolLM2-135M-Instruct", "object": "model"}
        return self.refused(request) or JSONResponse({"object": "list", "data": [model]})

    async def chat(self, request: Request) -> Response:
        if refusal := self.refused(request):
            return refusal
        body = await request.json()
        self.bodies.append(body)
        verb, _, rest = body["messages"][-1]["content"].partition(" ")
        if verb == "/status":
            code, _, seconds = rest.partition(" ")
            return error(int(code), "As the script says.", {"retry-after": seconds or "0"})
        return StreamingResponse(self.watched(verb, rest), media_type="text/event-stream")

    async def watched(self, verb: str, rest: str) -> AsyncIterator[bytes]:
        try:
            async for part in stream(verb, rest):
                yield part
        except asyncio.CancelledError:
            self.n_gone += 1
            raise


def error(code: int, message: str, headers: dict[str, str] | None = None) -> Response:
    body = {"message": message, "type": "error", "param": None, "code": CODES.get(code)}
    return JSONResponse({"error": body}, status_code=code, headers=headers)


def event(delta: dict[str, str], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return f"data: {json.dumps({'choices': [choice]}, ensure_ascii=False)}\n\n".encode()


async def stream(verb: str, rest: str) -> AsyncIterator[bytes]:
    words = " ".join(f"word{i}" for i in range(int(rest))) if verb == "/slow" else rest
    words = words if verb in {"/answer", "/slow"} else f"{verb} {rest}".strip()
    if verb == "/wait":
        yield b": waiting\n\n"
        await asyncio.sleep(60)
    if verb == "/raw":
        yield rest.replace("\\n", "\n").replace("\\r", "\r").encode()
        return
    if verb in {"/late", "/cut", "/reset"}:
        yield event({"content": "The first half"})
        await asyncio.sleep(0.05)
        if verb == "/reset":
            raise ConnectionError("as the script says")
        if verb == "/late":
            yield b'data: {"error": {"message": "The device failed.", "type": "server_error"}}\n\n'
        return
    async for part in answer(words, 0.03 if verb == "/slow" else 0):
        yield part


async def answer(words: str, pause_s: float) -> AsyncIterator[bytes]:
    pieces = [piece + " " for piece in words.split(" ")]
    pieces[-1] = pieces[-1][:-1]
    yield event({"role": "assistant", "content": ""})
    for piece in pieces:
        data = event({"content": piece})
        for at in range(0, len(data), len(data) if pause_s else 3):
            yield data[at : at + (len(data) if pause_s else 3)]
        await asyncio.sleep(pause_s)
    yield event({}, "stop")
    usage = {"prompt_tokens": 31, "completion_tokens": len(pieces), "total_tokens": 0}
    usage["prompt_tokens_details"] = {"cached_tokens": 16}  # type: ignore[assignment]
    yield f"data: {json.dumps({'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n".encode()


def with_policy(app: ASGIApp) -> ASGIApp:
    """The header that the page must work under, on every answer."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        async def sent(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY)]
            await send(message)

        await app(scope, receive, sent)

    return wrapped


class Serving:
    """The server in a thread, on a free port, under a sub-path as behind a proxy."""

    def __init__(self) -> None:
        self.script = Script()
        routes = [
            Route("/v1/models", self.script.models),
            Route("/v1/chat/completions", self.script.chat, methods=["POST"]),
            Mount("/", StaticFiles(directory=PAGE, html=True)),
        ]
        app = Starlette(routes=[Mount("/some/path", routes=routes)])
        config = uvicorn.Config(with_policy(app), port=0, log_level="critical", lifespan="off")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)

    @property
    def origin(self) -> str:
        port = self.server.servers[0].sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}"

    @property
    def url(self) -> str:
        return f"{self.origin}/some/path/"


@contextmanager
def serving() -> Iterator[Serving]:
    one = Serving()
    one.thread.start()
    while not one.server.started:
        one.thread.join(0.01)
    yield one
    one.server.should_exit = one.server.force_exit = True
    one.thread.join()
