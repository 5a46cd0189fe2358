"""The ASGI application: all routes, and what is around them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from m40llm import __version__
from m40llm.server import chat, completions, embeddings, files, health, models, native, shell
from m40llm.server.errors import ApiError
from m40llm.server.refusals import refusal
from m40llm.server.serving import Serving
from m40llm.server.settings import Settings

if TYPE_CHECKING:
    from m40llm.llm.service import Service

_OPEN: Final = ("/health",)
_WITH_MODEL: Final = ("ChatRequest", "CompletionRequest", "EmbeddingRequest")


def create_app(service: "Service", settings: Settings) -> FastAPI:
    """Serves the service; whoever made it closes it."""
    serving = Serving(service, settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        serving.inbox.open()
        yield

    app = _App(
        title="m40llm",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # these load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.serving = serving
    for room in (chat, completions, embeddings, native, models, health):
        app.include_router(room.router)
    app.include_router(files.router())
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _refuse)
    app.add_middleware(shell.Shell, serving=serving)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # OpenAI's own clients send some that say what they are
            expose_headers=["x-request-id", "retry-after"],
        )
    return app


class _App(FastAPI):
    """FastAPI, whose document says what this server does."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is not None:
            return self.openapi_schema
        document = super().openapi()
        serving = self.state.serving
        keys, parts = serving.keys, document["components"]
        names = serving.settings.names + serving.settings.loras
        for name in _WITH_MODEL:
            parts["schemas"][name]["properties"]["model"]["enum"] = list(names)
        for name in ("HTTPValidationError", "ValidationError"):
            parts["schemas"].pop(name, None)
        if keys:
            parts["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path, operations in document["paths"].items():
            for operation in operations.values():
                operation["responses"].pop("422", None)  # it is 400 here
                if keys and path not in _OPEN:
                    operation["security"] = [{"key": []}]
        return document


async def _http_error(request: Request, error: Exception) -> Response:
    """FastAPI's own: no such route or method, a body that is no JSON."""
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path}"
    told = {404: f"no such endpoint: {where}", 405: f"no such method: {where}"}
    codes = {400: "invalid_json", 404: "not_found", 405: "method_not_allowed"}
    code = codes.get(error.status_code, "invalid_request")
    text = told.get(error.status_code, str(error.detail))
    headers = dict(error.headers or {})
    if "GET" in (allowed := headers.get("Allow", "").split(", ")):
        headers["Allow"] = ", ".join(sorted({*allowed, "HEAD"}))  # the shell sees to that
    return await shell.handle(
        request, ApiError(error.status_code, text, code=code, headers=headers)
    )


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return await shell.handle(request, refusal(error.errors()))
