"""A server that answers as the Hugging Face hub does, as far as one download needs it."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CONTENT = b"GGUF" + bytes(range(251)) * 2000
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILE = "/me/things/resolve/main/q4/a.gguf"


class FakeHub(ThreadingHTTPServer):
    """One repository me/things with one file q4/a.gguf; `gated/` and `private/` answer 403, 401."""

    etag = hashlib.sha256(CONTENT).hexdigest()
    n_broken = 0  # answers yet to break off half-way
    requests: list[tuple[str, str, str | None]]  # method, path, Range


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeHub

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        wanted_range = self.headers.get("Range")
        self.server.requests.append((self.command, self.path, wanted_range))
        if self.path != FILE and COMMIT not in self.path:
            self._refuse()
            return
        begin = int(wanted_range.removeprefix("bytes=").split("-")[0]) if wanted_range else 0
        body = CONTENT[begin:]
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{self.server.etag}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if with_body and self.server.n_broken:
            self.server.n_broken -= 1
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.close_connection = True
        elif with_body:
            self.wfile.write(body)

    def _refuse(self) -> None:
        status, code = 404, "EntryNotFound"
        if self.path.startswith("/private/"):
            status, code = 401, "RepoNotFound"
        elif self.path.startswith("/gated/"):
            status, code = 403, "GatedRepo"
        elif self.path.startswith("/broken/"):
            status, code = 500, ""
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """Serve on a free port of this machine."""
    server = FakeHub(("127.0.0.1", 0), Handler)
    server.requests = []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
