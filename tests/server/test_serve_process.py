"""The server as a process: signals, the end with grace, the log, and what the command refuses."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from m40llm.errors import RequestError
from m40llm.server.keys import Keys, read_keys
from m40llm.server.run import bound, url_of
from m40llm.server.settings import Settings

ASKED = {"model": "tiny", "messages": [{"role": "user", "content": "the word is Rosebud"}]}
SCRIPT = Path(__file__).with_name("serve_scripted.py")
SAID = " the quick brow"


class Process:
    """A server of its own, and its URL."""

    def __init__(self, *args: str, script: str = str(SCRIPT)) -> None:
        pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, script, *args], **pipes)
        self.url = self.process.stdout.readline().strip()  # type: ignore[union-attr]

    def signal(self, which: int) -> None:
        self.process.send_signal(which)

    def end(self) -> tuple[int, str, list[dict[str, Any]]]:
        """Exit code, stdout, the lines of the log."""
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out, [json.loads(line) for line in err.splitlines()]


@contextlib.contextmanager
def served(path: Path, grace_s: float, token_s: float) -> Iterator[Process]:
    made = Process(str(path), str(grace_s), str(token_s))
    try:
        yield made
    finally:
        made.process.kill()
        made.process.wait()


def asking(url: str, **more: Any) -> tuple[threading.Thread, list[httpx.Response]]:
    """A request in a thread of its own, and its answer when it has come."""
    answers: list[httpx.Response] = []

    def ask() -> None:
        with contextlib.suppress(httpx.HTTPError):
            answers.append(httpx.post(f"{url}/v1/chat/completions", json=ASKED | more, timeout=30))

    thread = threading.Thread(target=ask)
    thread.start()
    return thread, answers


def busy(url: str, n_requests: int = 1) -> None:
    """Until so many have come, of which one runs."""
    while True:
        told = httpx.get(f"{url}/health").json()
        if told["running"] and told["running"] + told["waiting"] >= n_requests:
            return
        time.sleep(0.02)


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT])
def test_what_is_under_way_is_finished(tiny_path: Path, which: int) -> None:
    with served(tiny_path, grace_s=10, token_s=0.1) as server:
        whole, answers = asking(server.url)
        stream, streamed = asking(server.url, stream=True)
        busy(server.url, 2)
        server.signal(which)
        time.sleep(0.1)
        assert httpx.get(f"{server.url}/health").status_code == 503
        late = httpx.post(f"{server.url}/v1/chat/completions", json=ASKED)
        assert late.status_code == 503
        assert late.json()["error"]["code"] == "shutting_down"
        whole.join()
        stream.join()
        code, out, lines = server.end()
    assert answers[0].json()["choices"][0]["message"]["content"] == SAID
    assert streamed[0].text.endswith("data: [DONE]\r\n\r\n")
    assert (code, out) == (0, "ended\n")
    assert [line["event"] for line in lines].count("closing") == 1


def test_what_takes_too_long_is_cancelled_and_told(tiny_path: Path) -> None:
    with served(tiny_path, grace_s=0.3, token_s=1.0) as server:
        whole, answers = asking(server.url)
        stream, streamed = asking(server.url, stream=True)
        busy(server.url)
        begin = time.monotonic()
        server.signal(signal.SIGTERM)
        whole.join()
        stream.join()
        code, _, _ = server.end()
        assert time.monotonic() - begin < 6
    assert code == 0
    assert answers[0].status_code == 503
    assert answers[0].json()["error"]["code"] == "shutting_down"
    assert '"code": "shutting_down"' in streamed[0].text


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT])
def test_the_second_signal_does_not_wait(tiny_path: Path, which: int) -> None:
    with served(tiny_path, grace_s=60, token_s=1.0) as server:
        thread, _ = asking(server.url)
        busy(server.url)
        server.signal(which)
        time.sleep(0.3)
        assert server.process.poll() is None
        server.signal(which)
        assert server.process.wait(timeout=5) == 128 + which
        thread.join()


def test_the_log(tiny_path: Path) -> None:
    """A line of JSON for each request; of prompts and answers, not a word."""
    with served(tiny_path, grace_s=1, token_s=0) as server:
        thread, answers = asking(server.url)
        thread.join()
        httpx.get(f"{server.url}/nope")
        httpx.get(f"{server.url}/health")  # is not logged
        server.signal(signal.SIGTERM)
        _, _, lines = server.end()
    asked, nope, closing = lines
    assert asked["request_id"] == answers[0].headers["x-request-id"]
    assert asked["endpoint"] == "/v1/chat/completions"
    assert (asked["event"], asked["status"], asked["model"]) == ("request", 200, "tiny")
    assert (asked["generated_tokens"], asked["client"]) == (13, "127.0.0.1")
    assert 0 < asked["ttft_s"] <= asked["seconds"]
    assert (nope["status"], nope["error"], nope["endpoint"]) == (404, "not_found", "none")
    assert closing["event"] == "closing"
    assert "Rosebud" not in json.dumps(lines)
    assert "quick" not in json.dumps(lines)


def test_prompts_are_logged_if_asked(ask_of: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "m40llm.server")
    for log_prompts in (False, True):
        caplog.clear()
        ask_of(log_prompts=log_prompts).post("/v1/chat/completions", **ASKED)
        (record,) = [r for r in caplog.records if r.getMessage() == "request"]
        fields: dict[str, Any] = record.fields  # type: ignore[attr-defined]
        assert ("Rosebud" in str(fields)) == log_prompts
        assert fields.get("answers") == ([SAID] if log_prompts else None)


def test_addresses() -> None:
    with bound("127.0.0.1", 0) as at:
        port = at.getsockname()[1]
        assert url_of(at) == f"http://127.0.0.1:{port}"
        with pytest.raises(
            RequestError, match=rf"port: {port} on 127.0.0.1 cannot be had: Address"
        ):
            bound("127.0.0.1", port)
    with pytest.raises(RequestError, match=r"host: 'no\.such\.host\.invalid' is no address"):
        bound("no.such.host.invalid", 0)
    with pytest.raises(RequestError, match=r"port: 0 on 192\.0\.2\.1 cannot be had"):
        bound("192.0.2.1", 0)


def test_keys_of_a_file_and_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\n one \n\ntwo\n")
    keys = read_keys(file, "three, one")
    assert keys == ("one", "two", "three")
    who = Keys(keys)
    assert who
    assert len({who.client_of(f"Bearer {key}") for key in keys}) == 3
    assert who.client_of("bearer two") == who.client_of("Bearer two")
    for wrong in (None, "", "Bearer", "Bearer on", "Bearer one two", "one", "Basic one"):
        assert who.client_of(wrong) is None
    assert not Keys(read_keys(None, None))
    assert "three" not in repr(Settings(names=("a",), keys=keys))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "has no key in it"),
        (b"# nothing\n\n", "has no key in it"),
        (b"a key\n", "key 1: expected ASCII without spaces"),
        ("ok\nschlüssel\n".encode(), "key 2: expected ASCII"),
        (b"\xff\xfe", "is not UTF-8, at byte 0"),
        (None, "cannot read"),
    ],
)
def test_key_files_that_are_none(tmp_path: Path, content: bytes | None, told: str) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(RequestError, match=told) as raised:
        read_keys(file, None)
    assert "schl" not in str(raised.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("names", ()), ("names", ("",)), ("names", ("a", "a")), ("loras", ("tiny",))),
        *(("max_body_bytes", 0), ("max_prompt", 0), ("max_tokens", -1), ("time_limit_s", 0)),
        *(("send_timeout_s", -1), ("send_timeout_s", float("nan")), ("grace_s", -0.1)),
        *(("head_timeout_s", 0), ("body_timeout_s", -1), ("max_connections", 0)),
    ],
)
def test_settings_that_are_none(field: str, value: Any) -> None:
    with pytest.raises(RequestError):
        Settings(**{"names": ("tiny",), field: value})


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--port", "{busy}"], "error: --port: {busy} on 127.0.0.1 cannot be had"),
        (["--host", "no.such.host.invalid"], "error: --host: 'no.such.host.invalid' is no address"),
        (["--api-key-file", "/no/such"], "error: --api-key-file: cannot read /no/such"),
        (["--lora", "poet"], "error: --lora: expected NAME=FILE, got 'poet'"),
        (["--lora", "poet=/no/such"], "error: --lora: no such file: /no/such"),
        (["--time-limit", "0"], "error: --time-limit: expected seconds above 0, got 0.0"),
        (["--head-timeout", "0"], "error: --head-timeout: expected seconds above 0, got 0.0"),
        (["--grace", "-1"], "error: --grace: expected seconds from 0 to 1e+06, got -1.0"),
        (["--name", "a", "--name", "a"], "error: --name: expected each once, got a, a"),
        (["--port", "0", "--max-seq-len", "9999"], "error: --max-seq-len: expected 1 to"),
        (["--port", "0", "--device", "cpu", "--cublas"], "error: --cublas: expected a CUDA card"),
    ],
)
def test_the_command_refuses(tiny_path: Path, args: list[str], told: str) -> None:
    from typer.testing import CliRunner

    from m40llm.cli.app import app

    with socket.create_server(("127.0.0.1", 0)) as busy_one:
        port = str(busy_one.getsockname()[1])
        given = [arg.replace("{busy}", port) for arg in args]
        result = CliRunner().invoke(app, ["serve", str(tiny_path), *given, "--json"])
    assert result.exit_code == 1
    assert told.replace("{busy}", port) in result.stderr
    assert json.loads(result.stdout)["error"]["type"] == "RequestError"


def test_the_command_names_packages_that_are_missing(
    tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from m40llm.cli.app import app

    monkeypatch.setattr("m40llm.cli.serve.PACKAGES", ("fastapi", "no_such_package"))
    result = CliRunner().invoke(app, ["serve", str(tiny_path)])
    assert result.exit_code == 1
    assert 'the server needs no_such_package; run: pip install "m40llm[server]"' in result.stderr


@pytest.mark.parametrize(("args", "code"), [((), 1), (("--help",), 0)])
def test_the_command_without_the_extra(tiny_path: Path, args: tuple[str, ...], code: int) -> None:
    """Nothing of it can be imported: the command says what to do, and still has its help."""
    lacking = ("fastapi", "uvicorn", "sse_starlette", "prometheus_client")  # typer needs pydantic
    without = f"import sys; sys.modules.update(dict.fromkeys({(*lacking, 'h11', 'starlette')}))"
    script = f"{without}; from m40llm.cli import main; main()"
    command = [sys.executable, "-c", script, "serve", str(tiny_path), *args]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == code, ran.stderr
    if code:
        told = 'pip install "m40llm[server]" (in a clone of it: pip install ".[server]")'
        assert ran.stderr == f"error: the server needs {', '.join(lacking)}; run: {told}\n"


@pytest.mark.parametrize("device", ["cpu", "emulator"])
def test_the_command_serves_a_model(device: str, tiny_path: Path) -> None:
    """The whole: a real model, two answers that agree, and an end."""
    command = ["-m", "m40llm", "serve", str(tiny_path), "--device", device, "--port", "0", "--json"]
    environment = os.environ | {"M40LLM_API_KEYS": "secret"}
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, *command], env=environment, **pipes) as process:
        head = json.loads(process.stdout.readline())  # type: ignore[union-attr]
        assert (head["model"], head["device"], head["slots"]) == ("tiny", device, 4)
        asked: dict[str, Any] = {**ASKED, "max_tokens": 8, "temperature": 0}
        how: Any = {"headers": {"authorization": "Bearer secret"}, "timeout": 60}
        url = f"{head['url']}/v1/chat/completions"
        said = [
            httpx.post(url, json=asked, **how).json()["choices"][0]["message"]["content"]
            for _ in range(2)
        ]
        vectors = {"model": "tiny", "input": ["hello", "you"]}
        embedded = httpx.post(f"{head['url']}/v1/embeddings", json=vectors, **how).json()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert said[0] == said[1]
    assert [len(one["embedding"]) for one in embedded["data"]] == [64, 64]
    assert f"serving tiny at {head['url']} on {device}: 4 slots of 128 tokens" in err
    assert "secret" not in err
