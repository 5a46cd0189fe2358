"""The web page: plain files of the folder `page`, served at / with a strict policy."""

import hashlib
from pathlib import Path
from typing import Final

from fastapi import APIRouter, Request
from fastapi.responses import Response

_FOLDER: Final = Path(__file__).parent / "page"
_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".webmanifest": "application/manifest+json",
}
_HEADERS: Final = {
    "content-security-policy": "default-src 'self'; base-uri 'none'; object-src 'none'; "
    "form-action 'self'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",  # keep it, but ask whether it is still the same
}
FILES: Final = tuple(
    sorted(path.name for path in _FOLDER.glob("*") if path.suffix in _TYPES and path.is_file())
)


def router() -> APIRouter:
    """A route for each file; index.html is / as well."""
    made = APIRouter(include_in_schema=False)
    for name in FILES:
        _add(made, f"/{name}", _FOLDER / name)
        if name == "index.html":
            _add(made, "/", _FOLDER / name)
    return made


def _add(made: APIRouter, at: str, path: Path) -> None:
    content = path.read_bytes()
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {**_HEADERS, "etag": tag}

    async def file(request: Request) -> Response:
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=_TYPES[path.suffix])

    made.add_api_route(at, file)
