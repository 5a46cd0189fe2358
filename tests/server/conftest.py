"""A server whose service says what a test tells it to, asked in the process or over a socket."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from m40llm.server.app import create_app
from m40llm.server.run import config_of
from m40llm.server.settings import Settings
from m40llm.testing import write_tiny_gguf
from m40llm.testing.scripted import ScriptedService

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if shout %}!{% endif %}{% if messages[0].content == 'refuse' %}"
    "{{ raise_exception('not this') }}{% endif %}<assistant>"
)


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return write_tiny_gguf(folder / "tiny.gguf", tokenizer="bpe", chat_template=TEMPLATE)


@pytest.fixture
def service(tiny_path: Path) -> ScriptedService:
    return ScriptedService(tiny_path)


class InProcess:
    """Asks an application without a socket; each call is a request from beginning to end."""

    def __init__(self, app: Any) -> None:
        self.app = app

    def __call__(self, method: str, url: str, **how: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://m40llm") as client:
                return await client.request(method, url, **how)

        return asyncio.run(ask())

    def post(self, url: str, **body: Any) -> httpx.Response:
        kind = {"content-type": "application/json"}
        return self("POST", url, content=json.dumps(body), headers=kind)

    def get(self, url: str, **how: Any) -> httpx.Response:
        return self("GET", url, **how)


@pytest.fixture
def ask_of(service: ScriptedService) -> Callable[..., InProcess]:
    """An application with these settings."""

    def made(**settings: Any) -> InProcess:
        return InProcess(create_app(service, Settings(**{"names": ("tiny",), **settings})))  # type: ignore[arg-type]

    return made


@pytest.fixture
def ask(ask_of: Callable[..., InProcess]) -> InProcess:
    return ask_of()


@contextlib.contextmanager
def _served(app: Any) -> Iterator[str]:
    """uvicorn in a thread, on a free port of the loopback."""
    with socket.create_server(("127.0.0.1", 0)) as at:
        server = uvicorn.Server(config_of(app))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [at]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.005)
        yield f"http://127.0.0.1:{at.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture
def served(service: ScriptedService) -> Iterator[Callable[..., str]]:
    """The address of a server with these settings."""
    with contextlib.ExitStack() as stack:

        def made(**settings: Any) -> str:
            app = create_app(service, Settings(**{"names": ("tiny",), **settings}))  # type: ignore[arg-type]
            return stack.enter_context(_served(app))

        yield made
