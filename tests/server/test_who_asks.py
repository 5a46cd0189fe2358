"""Who a request is taken to be from, and by which names the server may be asked."""

import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from m40llm.cli.app import app
from m40llm.llm.service import Service
from m40llm.server import run as run_server
from m40llm.server.settings import Settings
from m40llm.testing.scripted import ScriptedService

TEXT = "/v1/completions"
ASKED = {"model": "tiny", "prompt": "a"}
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@pytest.mark.parametrize(
    ("proxies", "forwarded", "client"),
    [
        (("127.0.0.1",), "10.1.2.3", "10.1.2.3"),
        (("192.0.2.1", "127.0.0.1"), "10.1.2.3", "10.1.2.3"),
        (("127.0.0.1",), "6.6.6.6, 10.1.2.3", "10.1.2.3"),  # what the proxy itself has seen
        (("127.0.0.1",), None, "127.0.0.1"),
        (("192.0.2.1",), "10.1.2.3", "127.0.0.1"),
        ((), "10.1.2.3", "127.0.0.1"),
    ],
)
def test_a_trusted_proxy_says_who_the_client_is(
    served: Callable[..., str],
    service: Any,
    caplog: pytest.LogCaptureFixture,
    proxies: Any,
    forwarded: str | None,
    client: str,
) -> None:
    """For the fair order, and in the log."""
    caplog.set_level("INFO", "m40llm.server")
    headers = {} if forwarded is None else {"x-forwarded-for": forwarded}
    url = served(trusted_proxies=proxies)
    assert httpx.post(url + TEXT, json=ASKED, headers=headers).status_code == 200
    assert [one["client"] for one in service.asked] == [client]
    told: list[str] = []
    while not told:  # it is logged once it has been answered
        lines = [r.fields for r in caplog.records if r.getMessage() == "request"]  # type: ignore[attr-defined]
        told = [line["client"] for line in lines]
    assert told == [client]


def test_a_key_says_more_than_an_address(served: Callable[..., str], service: Any) -> None:
    url = served(trusted_proxies=("127.0.0.1",), keys=("secret",))
    for address in ("10.1.2.3", "10.1.2.4"):
        headers = {"x-forwarded-for": address, "authorization": "Bearer secret"}
        assert httpx.post(url + TEXT, json=ASKED, headers=headers).status_code == 200
    first, second = (one["client"] for one in service.asked)
    assert first == second
    assert "10.1" not in first


def raw(url: str, head: str) -> tuple[int, bytes]:
    """Status, and the whole answer, after which the connection must end."""
    at = httpx.URL(url)
    with socket.create_connection((at.host, at.port), timeout=10) as client:
        client.sendall(head.encode())
        said = b"".join(iter(lambda: client.recv(65536), b""))
    return int(said.split()[1]), said


def test_http_1_0_needs_no_host(served: Callable[..., str]) -> None:
    """A browser, from which the names protect, always sends one."""
    url = served(hosts=LOOPBACK)
    status, said = raw(url, "GET /v1/models HTTP/1.0\r\n\r\n")
    assert status == 200
    assert b'"tiny"' in said
    body = '{"prompt": "a", "stream": true}'
    kind = f"content-type: application/json\r\ncontent-length: {len(body)}"
    status, said = raw(url, f"POST /generate HTTP/1.0\r\n{kind}\r\n\r\n{body}")
    assert status == 200
    assert said.rstrip().endswith(b'"done": true}')
    assert b"chunked" not in said
    assert raw(url, "GET /v1/models HTTP/1.0\r\nhost: evil.example\r\n\r\n")[0] == 403
    status, said = raw(url, "GET /v1/models HTTP/1.1\r\n\r\n")
    assert status == 400
    assert b"invalid_http" in said


@pytest.mark.parametrize(
    ("host", "key", "status"),
    [
        ("llm.example.org", "secret", 200),
        ("LLM.example.org:8000", "secret", 200),
        ("llm.example.org", "wrong", 401),
        ("llm.example.org", None, 401),
        ("evil.example", "secret", 403),
        ("evil.example", None, 403),
    ],
)
def test_names_beside_keys(
    ask_of: Any, service: Any, host: str, key: str | None, status: int
) -> None:
    """Both are wanted."""
    ask = ask_of(keys=("secret",), hosts=("llm.example.org", *LOOPBACK))
    headers = {"host": host} | ({} if key is None else {"authorization": f"Bearer {key}"})
    assert ask("POST", TEXT, json=ASKED, headers=headers).status_code == status
    assert len(service.asked) == (status == 200)


@pytest.mark.parametrize(
    ("args", "keys", "hosts"),
    [
        ([], None, LOOPBACK),
        (["--allowed-host", "LLM.example"], None, (*LOOPBACK, "llm.example")),
        ([], "secret", ()),
        (["--allowed-host", "LLM.example"], "secret", (*LOOPBACK, "llm.example")),
        (["--host", "0.0.0.0"], None, ()),
        (
            ["--host", "0.0.0.0", "--allowed-host", "llm.example"],
            None,
            (*LOOPBACK, "0.0.0.0", "llm.example"),
        ),
    ],
)
def test_names_that_the_command_answers_to(
    tiny_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    args: Sequence[str],
    keys: str | None,
    hosts: tuple[str, ...],
) -> None:
    found: list[Settings] = []
    load = staticmethod(lambda path, **_: ScriptedService(Path(path)))
    monkeypatch.setattr(Service, "load", load)
    monkeypatch.setattr(run_server, "run", lambda _, settings, *rest: found.append(settings))
    proxies = ["--trusted-proxy", "10.0.0.1", "--trusted-proxy", "10.0.0.2"]
    command = ["serve", str(tiny_path), "--port", "0", *args, *proxies]
    result = CliRunner().invoke(app, command, env={"M40LLM_API_KEYS": keys})
    assert result.exit_code == 0, result.output
    (settings,) = found
    assert set(settings.hosts) == set(hosts)
    assert settings.keys == (() if keys is None else (keys,))
    assert settings.trusted_proxies == ("10.0.0.1", "10.0.0.2")
