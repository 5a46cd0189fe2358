"""Clients that go away, or take nothing, hold nothing: no slot, no thread, no memory."""

import contextlib
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

HELLO = [{"role": "user", "content": "hello"}]
CHAT = "/v1/chat/completions"
ASKED: dict[str, Any] = {"model": "tiny", "messages": HELLO}


def until(true: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


@contextlib.contextmanager
def sent(
    url: str, body: dict[str, Any], path: str = CHAT, receive: int = 0
) -> Iterator[socket.socket]:
    """A request on a socket of its own, of whose answer nothing is read; closed at the end."""
    at, content = httpx.URL(url), json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
    with socket.socket() as made:
        if receive:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
        made.connect((at.host, at.port))
        made.sendall(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
        yield made


def test_going_away_from_a_stream(served: Callable[..., str], service: Any) -> None:
    service.script.n_tokens, service.script.token_s = 10_000, 0.01
    with sent(served(), ASKED | {"stream": True, "n": 2}) as client:
        assert client.recv(100).startswith(b"HTTP/1.1 200")
        until(lambda: len(service.tickets) == 2)
        assert not service.tickets[0].is_cancelled
    until(lambda: all(ticket.is_cancelled for ticket in service.tickets))


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/generate"])
def test_going_away_from_an_answer_that_comes_whole(
    served: Callable[..., str], service: Any, path: str
) -> None:
    service.script.go.clear()
    asked = {CHAT: ASKED, "/generate": {"prompt": "a"}}.get(path, {"model": "tiny", "prompt": "a"})
    with sent(served(), asked, path):
        until(lambda: len(service.tickets) == 1)
        time.sleep(0.1)
        assert not service.tickets[0].is_cancelled
    until(lambda: service.tickets[0].is_cancelled)


def test_going_away_before_the_first_token(served: Callable[..., str], service: Any) -> None:
    service.script.go.clear()
    for path, asked in (
        (CHAT, ASKED | {"stream": True}),
        ("/generate", {"prompt": "a", "stream": True}),
    ):
        service.tickets.clear()
        with sent(served(), asked, path):
            until(lambda: len(service.tickets) == 1)
        until(lambda: service.tickets[0].is_cancelled)


def test_going_away_while_the_prompt_is_read(served: Callable[..., str], service: Any) -> None:
    """The ticket is made after the client has gone, by a thread that nobody can stop."""
    submit = service.submit

    def late(*args: Any, **how: Any) -> Any:
        time.sleep(0.5)
        return submit(*args, **how)

    service.submit, service.script.token_s = late, 0.05
    with sent(served(), ASKED):
        time.sleep(0.1)
    until(lambda: len(service.tickets) == 1 and service.tickets[0].is_cancelled)


def test_going_away_is_logged_as_such(
    served: Callable[..., str], service: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "m40llm.server")
    service.script.go.clear()
    with sent(served(), ASKED):
        until(lambda: len(service.tickets) == 1)
    until(lambda: any(r.getMessage() == "request" for r in caplog.records))
    (fields,) = [r.fields for r in caplog.records if r.getMessage() == "request"]  # type: ignore[attr-defined]
    assert fields["status"] == 499


def test_a_reader_that_takes_nothing_is_cut(served: Callable[..., str], service: Any) -> None:
    """Its slot is free again, and its connection is closed, whatever waits for it."""
    service.script.n_tokens = 10**6
    service.script.text = "word " * 12
    url = served(send_timeout_s=0.3)
    with sent(url, ASKED | {"stream": True}, receive=4096) as client:
        until(lambda: len(service.tickets) == 1)
        until(lambda: service.tickets[0].is_cancelled, 60)
        assert httpx.get(f"{url}/health").status_code == 200
        with contextlib.suppress(ConnectionResetError):
            while client.recv(1 << 20):
                pass


def test_a_slow_reader_gets_everything(served: Callable[..., str], service: Any) -> None:
    service.script.n_tokens = 2_000
    url = served(send_timeout_s=5)
    with httpx.stream("POST", url + CHAT, json=ASKED | {"stream": True}, timeout=30) as answer:
        said = ""
        for number, line in enumerate(answer.iter_lines()):
            time.sleep(0.01 if number < 20 else 0)
            if line.startswith("data: {"):
                said += json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
    assert said == (" the quick brown fox" * 200)[: len(said)]
    assert len(said) > 2_000


def test_nothing_is_left_behind(served: Callable[..., str], service: Any) -> None:
    """Of many that came and went: no open ticket, no file descriptor, no thread."""
    url, held = served(), []
    service.script.token_s = 0.01

    def n_pooled() -> int:
        return sum(thread.name.startswith("asyncio_") for thread in threading.enumerate())

    def n_held() -> int:
        return len(os.listdir("/proc/self/fd")) + threading.active_count() - n_pooled()

    n_pooled_before = n_pooled()
    for _ in range(4):
        for number in range(20):
            with sent(url, ASKED | {"stream": number % 2 == 0}):
                time.sleep(0.01 * (number % 3))
        until(lambda: all(ticket.is_ended for ticket in service.tickets))
        assert "m40llm_slots_busy 0.0" in httpx.get(f"{url}/metrics").text
        time.sleep(0.5)
        held.append(n_held())
    until(lambda: n_held() <= max(held[:2]))
    # asyncio's pool makes a thread whenever none is idle, at any time, up to its bound.
    assert n_pooled() - n_pooled_before <= min(32, (os.cpu_count() or 1) + 4)
