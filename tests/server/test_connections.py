"""Connections that ask nothing, or slowly, are bounded; those under way are not."""

import contextlib
import json
import select
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

HEAD = b"POST /generate HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
HEALTH = b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n"


@contextlib.contextmanager
def connected(url: str) -> Iterator[socket.socket]:
    at = httpx.URL(url)
    with socket.create_connection((at.host, at.port), timeout=20) as made:
        yield made


def rest(client: socket.socket) -> bytes:
    """What comes until the server closes the connection."""
    with contextlib.suppress(ConnectionResetError):
        return b"".join(iter(lambda: client.recv(65536), b""))
    return b""


def answered(client: socket.socket) -> bool:
    """Reads one whole answer; whether it is 200."""
    said = b""
    while b"\r\n\r\n" not in said:
        said += client.recv(1)
    head = said.lower()
    n_left = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
    while n_left:
        n_left -= len(client.recv(n_left))
    return said.startswith(b"HTTP/1.1 200 ")


def trickle(client: socket.socket, data: bytes) -> float:
    """Sends a byte now and then until something comes back; how long that took."""
    begin = time.monotonic()
    for at in range(len(data)):
        client.sendall(data[at : at + 1])
        if select.select([client], [], [], 0.02)[0]:
            return time.monotonic() - begin
    raise AssertionError("nothing came back")


def error_of(answer: bytes) -> tuple[int, str]:
    """Status, code."""
    head, _, content = answer.partition(b"\r\n\r\n")
    assert b"\r\nconnection: close" in head.lower()
    return int(head.split()[1]), json.loads(content)["error"]["code"]


def counted(url: str, code: str) -> float:
    page = httpx.get(f"{url}/metrics").text.splitlines()
    line = f'm40llm_errors_total{{code="{code}"}} '
    return sum(float(one.removeprefix(line)) for one in page if one.startswith(line))


def test_a_connection_that_asks_nothing_is_closed(served: Callable[..., str]) -> None:
    with connected(served(head_timeout_s=0.3)) as client:
        assert rest(client) == b""


def test_a_head_that_trickles_is_told(served: Callable[..., str]) -> None:
    url = served(head_timeout_s=0.3)
    with connected(url) as client:
        assert trickle(client, HEAD * 10) < 5
        assert error_of(rest(client)) == (408, "head_timeout")
    assert counted(url, "head_timeout") == 1


def test_the_next_head_of_a_connection_has_its_own_time(served: Callable[..., str]) -> None:
    with connected(served(head_timeout_s=1.0)) as client:
        for _ in range(3):  # longer than 1 s together
            client.sendall(HEALTH[:20])
            time.sleep(0.4)
            client.sendall(HEALTH[20:])
            assert answered(client)
        time.sleep(1.2)  # between requests only uvicorn's own time runs
        client.sendall(HEALTH)
        assert answered(client)
        trickle(client, HEAD * 10)
        assert error_of(rest(client)) == (408, "head_timeout")


def test_a_body_that_trickles_is_told(served: Callable[..., str], service: Any) -> None:
    """Each byte comes in time, but not the whole."""
    url = served(body_timeout_s=0.3)
    with connected(url) as client:
        client.sendall(HEAD + b"content-length: 5000\r\n\r\n")
        assert trickle(client, b" " * 5000) < 5
        assert error_of(rest(client)) == (408, "body_timeout")
    assert not service.asked
    assert counted(url, "body_timeout") == 1


def test_a_body_that_nobody_waits_for_holds_nothing(served: Callable[..., str]) -> None:
    """The answer, 401, has been given before the body came."""
    with connected(served(head_timeout_s=0.3, keys=("secret",))) as client:
        client.sendall(HEAD + b"content-length: 5000\r\n\r\n")
        assert not answered(client)
        assert trickle(client, b" " * 5000) < 5
        assert rest(client) == b""


def test_an_answer_takes_as_long_as_it_likes(served: Callable[..., str], service: Any) -> None:
    """Whole or streamed, behind a head in pieces, and the connection serves on behind it."""
    service.script.n_tokens, service.script.token_s = 10, 0.2
    url = served(head_timeout_s=1.0, body_timeout_s=1.0)
    for stream in (False, True):
        body = json.dumps({"prompt": "a", "stream": stream}).encode()
        head = HEAD + f"content-length: {len(body)}\r\n\r\n".encode()
        with connected(url) as client:
            for piece in (head[:10], head[10:], body):
                client.sendall(piece)
                time.sleep(0.05)
            client.sendall(HEALTH)  # it waits for its turn
            said = b""
            while b'"status":"ok"' not in said:
                piece = client.recv(65536)
                assert piece
                said += piece
            assert said.count(b"HTTP/1.1 200 ") == 2


def test_so_many_connections_and_no_more(served: Callable[..., str]) -> None:
    url = served(max_connections=3)
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(connected(url)) for _ in range(3)]
        for client in held:
            client.sendall(HEALTH)
            assert answered(client)
        for _ in range(5):
            with connected(url) as one_more:
                one_more.sendall(HEALTH)
                answer = rest(one_more)
            assert error_of(answer) == (503, "too_many_connections")
            assert b"\r\nretry-after: 1\r\n" in answer
        client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.InternalServerError, match="as many as this server takes"):
            client.models.list()
        held[0].sendall(HEALTH)
        assert answered(held[0])
    deadline = time.monotonic() + 10
    while httpx.get(f"{url}/health").status_code != 200:
        assert time.monotonic() < deadline
    assert counted(url, "too_many_connections") >= 6


def test_those_who_are_refused_hold_nothing(served: Callable[..., str]) -> None:
    """However many, and whatever they do not read or send."""
    url = served(max_connections=1)
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(connected(url))
        first.sendall(HEALTH)
        assert answered(first)
        more = [stack.enter_context(connected(url)) for _ in range(100)]
        for client in more:
            rest(client)
        first.sendall(HEALTH)
        assert answered(first)


def test_what_is_no_http_is_told_in_the_same_form(served: Callable[..., str]) -> None:
    url = served()
    with connected(url) as client:
        client.sendall(b"\x16\x03\x01\x00\xa5\x01\r\n\r\n")  # the beginning of TLS
        assert error_of(rest(client)) == (400, "invalid_http")
    assert counted(url, "invalid_http") == 1
