"""A device that is lost for good: another process goes on, at the same number and port."""

import os
import signal
import socket
import threading
import time
from pathlib import Path

import httpx
import pytest
from test_serve_process import ASKED, SAID, served

from m40llm.errors import DeviceError
from m40llm.server import restart as module
from m40llm.server.restart import inherited, restart
from m40llm.server.run import bound


def said(url: str) -> str:
    answer = httpx.post(f"{url}/v1/chat/completions", json=ASKED, timeout=30)
    return str(answer.json()["choices"][0]["message"]["content"])


def test_another_process_goes_on(tiny_path: Path) -> None:
    with served(tiny_path, grace_s=5, token_s=0.0) as server:
        out, pid = server.process.stdout, server.process.pid
        assert out is not None
        assert said(server.url) == SAID
        heard: list[str] = []
        server.signal(signal.SIGUSR1)
        time.sleep(0.5)  # no longer served, and not served again yet: who comes now waits
        client = threading.Thread(target=lambda: heard.append(said(server.url)))
        client.start()
        assert out.readline().strip() == server.url
        client.join()
        assert heard == [SAID]
        assert server.process.pid == pid
        server.signal(signal.SIGUSR1)  # at once again: a new process does not help
        code, rest, _ = ended(server)
    assert code == 1
    assert rest == ""


def ended(server: object) -> tuple[int, str, str]:
    """The log's last lines are a traceback: the script has no guard."""
    process = server.process  # type: ignore[attr-defined]
    out, err = process.communicate(timeout=30)
    assert "DeviceError: the card is lost; a new process, " in err
    assert '"event": "restarting"' in err
    return process.returncode, out, err


def test_an_inherited_socket_is_taken_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as before:
        monkeypatch.setenv("M40LLM_SOCKET", str(os.dup(before.fileno())))
        with bound("nowhere.invalid", 1) as after:
            assert after.getsockname() == before.getsockname()
        assert inherited() is None


def test_not_twice_in_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr(module, "_close_all_but", lambda fd: None)
    monkeypatch.setattr(module.os, "execv", lambda _, args: called.append(args))
    with socket.create_server(("127.0.0.1", 0)) as at:
        monkeypatch.setenv("M40LLM_RESTARTED", str(time.time() - 10))
        with pytest.raises(DeviceError, match=r"lost; a new process, 1\d s ago, has not helped"):
            restart(at, "lost")
        assert called == []
        monkeypatch.setenv("M40LLM_RESTARTED", str(time.time() - 90))
        monkeypatch.setenv("M40LLM_SOCKET", "")
        restart(at, "lost")
        assert os.environ["M40LLM_SOCKET"] == str(at.fileno())
        assert at.get_inheritable()
    assert len(called) == 1
