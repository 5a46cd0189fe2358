"""Replicas under Ray Serve: right answers while one is killed, nothing left at the end."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest

from m40llm import SamplingParams, Service, StreamItem
from m40llm.server.metrics import Metrics, of_replicas

KEY = {"authorization": "Bearer secret"}
PROMPTS = ("the quick", "brown fox", "jumps over the lazy dog", "hello there, you")
N_CLIENTS, N_TOKENS = 4, 60
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
LISTENS = "0A"  # the state, in /proc/net/tcp
SERVE = ("-m", "m40llm", "serve", "--device", "cpu", "--ray")


@pytest.fixture
def has_ray() -> None:
    if find_spec("ray") is None:
        pytest.skip("no ray: pip install m40llm[ray]")


def alone(path: Path) -> dict[str, str]:
    """What the engine says to each prompt by itself."""
    said: dict[str, str] = {}
    params = SamplingParams(temperature=0, max_tokens=N_TOKENS)
    with Service.load(path, device="cpu", slots=1) as service:
        for prompt in PROMPTS:
            ended = threading.Event()

            def listen(event: Any, prompt: str = prompt, ended: threading.Event = ended) -> None:
                if not isinstance(event, StreamItem):
                    said[prompt] = event.text
                    ended.set()

            service.submit(prompt, params, listen=listen)
            assert ended.wait(60)
    return said


def descendants(pid: int) -> dict[int, str]:
    """pid -> what the process calls itself, of all that the process has started."""
    parents, names = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if fields[0] != "Z":
                parents[int(folder.name)] = int(fields[1])
                name = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
                names[int(folder.name)] = name.decode(errors="replace")
    found, more = set(), {pid}
    while more:
        found |= more
        more = {child for child, parent in parents.items() if parent in more} - found
    return {one: names[one] for one in found - {pid} if one in names}


def addresses(pids: set[int]) -> set[str]:
    """Where these processes listen, as the kernel writes it."""
    inodes = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            with contextlib.suppress(OSError):
                inodes |= set(re.findall(r"^socket:\[(\d+)\]", os.readlink(link)))
    rows = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path("/proc/net", name).read_text().splitlines()[1:]
    ]
    return {row[1].partition(":")[0] for row in rows if row[3] == LISTENS and row[9] in inodes}


def replicas(pid: int) -> set[int]:
    return {one for one, name in descendants(pid).items() if name.startswith("ray::ServeReplica")}


def until(what: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.2)


@contextlib.contextmanager
def served(path: Path, log: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    command = [*SERVE, str(path), "--replicas", "2", "--port", "0", "--json", "--max-seq-len", "96"]
    environment = os.environ | {"M40LLM_API_KEYS": "secret"}
    with log.open("w") as err:
        pipes: Any = {"stdout": subprocess.PIPE, "stderr": err, "text": True, "env": environment}
        process = subprocess.Popen([sys.executable, *command], **pipes)
    try:
        line = process.stdout.readline()  # type: ignore[union-attr]
        assert line, log.read_text()
        yield process, json.loads(line)
    finally:
        process.kill()
        process.wait()


class Load:
    """Clients that ask and compare until they are told to end."""

    def __init__(self, url: str, expected: dict[str, str]) -> None:
        self.n_right, self.failed, self.wrong = 0, [], []  # type: ignore[var-annotated]
        self._url, self._expected, self._is_over = url, expected, threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(N_CLIENTS)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, n: int) -> None:
        with httpx.Client(base_url=self._url, headers=KEY, timeout=60) as client:
            while not self._is_over.is_set():
                prompt = PROMPTS[n % len(PROMPTS)]
                try:
                    said = streamed(client, prompt) if n % 2 else whole(client, prompt)
                except httpx.HTTPError as error:
                    self.failed.append(error)
                    continue
                if said == self._expected[prompt]:
                    self.n_right += 1
                else:
                    self.wrong.append((prompt, said))
                n += 1


def asked(prompt: str, **more: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": prompt, "temperature": 0, "max_tokens": N_TOKENS, **more}


def whole(client: httpx.Client, prompt: str) -> str:
    response = client.post("/v1/completions", json=asked(prompt)).raise_for_status()
    return str(response.json()["choices"][0]["text"])


def streamed(client: httpx.Client, prompt: str) -> str:
    text = ""
    with client.stream("POST", "/v1/completions", json=asked(prompt, stream=True)) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if line == "data: [DONE]":
                return text
            if line.startswith("data: "):
                text += json.loads(line[6:])["choices"][0]["text"]
    raise httpx.ReadError("the stream ended before its end")


@pytest.mark.usefixtures("has_ray")
def test_a_replica_dies_under_load(tiny_path: Path, tmp_path: Path) -> None:
    expected = alone(tiny_path)
    log = tmp_path / "log"
    with served(tiny_path, log) as (process, head):
        url = head["url"]
        assert (head["device"], head["replicas"], head["models"]) == ("cpu", 2, ["tiny"])
        assert httpx.get(f"{url}/v1/models").status_code == 401
        answer = httpx.get(f"{url}/v1/models", headers=KEY)
        assert answer.json()["data"][0]["id"] == "tiny"
        assert len(answer.headers.get_list("x-request-id")) == 1
        at = addresses({process.pid, *descendants(process.pid)})
        assert at
        assert at <= LOOPBACK
        before = replicas(process.pid)
        assert len(before) == 2
        with Load(url, expected) as load:
            until(lambda: load.n_right >= 20)
            killed = min(before)
            os.kill(killed, signal.SIGKILL)
            n_then = load.n_right
            until(lambda: load.n_right >= n_then + 20)
            until(lambda: len(replicas(process.pid) - {killed}) == 2)
            until(lambda: n_of_replicas(url) == 2)
        assert load.wrong == []
        print(f"{load.n_right} right, failed: {load.failed}")
        assert len(load.failed) <= N_CLIENTS  # one each: what it had under way
        started = descendants(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in started), 10)
    assert "secret" not in log.read_text()
    assert '"event": "request"' in log.read_text()
    assert '"event": "closing", "reason": "SIGTERM"' in log.read_text()
    assert "internal error" not in log.read_text()


def n_of_replicas(url: str) -> int:
    page = httpx.get(f"{url}/metrics", headers=KEY, timeout=30).text
    return len(re.findall(r"^m40llm_slots\{replica=", page, re.M))


def test_metrics_of_several(service: Any) -> None:
    """Each sample of each replica, once, under the same names."""
    pages = {}
    for name, n_requests in (("one", 2), ("two", 3)):
        metrics = Metrics(service)
        metrics.requests.labels("/v1/completions", "200").inc(n_requests)
        metrics.ttft_s.observe(0.3)
        pages[name] = metrics.page()
    merged = of_replicas(pages).decode()
    assert merged.count("# TYPE m40llm_requests_total counter") == 1
    of_two = [line for line in merged.splitlines() if 'replica="two"' in line]
    assert sorted(re.sub(r',?replica="two"', "", line).replace("{}", "") for line in of_two) == (
        sorted(line for line in pages["two"].decode().splitlines() if not line.startswith("#"))
    )


@pytest.mark.usefixtures("has_ray")
@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--ray", "--device", "cuda:1"], "error: --device: expected cuda, auto, cpu or emulator"),
        (["--ray", "--replicas", "3", "--max-replicas", "2"], "error: --max-replicas: expected at"),
    ],
)
def test_what_does_not_go_with_ray(tiny_path: Path, args: list[str], told: str) -> None:
    assert told in refused(tiny_path, *args)


@pytest.mark.parametrize("args", [["--replicas", "2"], ["--max-replicas", "1"]])
def test_what_needs_ray(tiny_path: Path, args: list[str]) -> None:
    assert "error: --replicas: they need --ray" in refused(tiny_path, *args)


def test_ray_is_missing(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m40llm.cli.serve.RAY", "no_such_package")
    told = 'error: --ray: no such package; run: pip install "m40llm[ray]"'
    assert told in refused(tiny_path, "--ray")


def refused(path: Path, *args: str) -> str:
    from typer.testing import CliRunner

    from m40llm.cli.app import app

    result = CliRunner().invoke(app, ["serve", str(path), "--port", "0", *args])
    assert result.exit_code == 1
    return result.stderr
