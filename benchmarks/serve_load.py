"""A server under clients of all kinds: no wrong answer, no leak, no unhandled exception.

    python benchmarks/serve_load.py smollm2 [--clients 64] [--seconds 600] [--out FILE.jsonl]

Starts `m40llm serve`, and beside it so many clients, each of which draws, again and again, what it
does: ask, stream, go away in mid-stream, read slowly, send what is no JSON, too much, a wrong key.
Every answer is compared with the one of the engine run alone. Then the server is told to end. The
exit code is 1 where anything was wrong. Prints one JSON document.
"""

import argparse
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from rows import hand_over

from m40llm import SamplingParams, Service, StreamItem
from m40llm.llm.results import Completion

KEY, MAX_BODY = "sk-of-this-load", 60_000
WHOLE = "whole-"  # begins the ids of requests whose answers come in one piece
NAME = "load"  # of the model
WORDS = "the a cat sun red of is in 2 + = and one day time king said water code light"
GONE_AFTER = (1, 2, 5)  # events of a stream
SLOW_S = 0.1  # between two events
WARM_SHARE = 0.3  # of the time, after which memory is looked at for the first time
GAUGES = re.compile(r"^m40llm_(slots_busy|queue_length|kv_tokens) (\S+)", re.M)
Answer = tuple[str, str]  # text, finish_reason


@dataclass(frozen=True)
class Case:
    """A request whose answer is known."""

    body: dict[str, Any]
    expected: Answer


@dataclass
class Report:
    """What the clients have seen."""

    n_of: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # of whole answers

    def check(self, is_right: bool, what: str) -> None:
        if not is_right:
            self.wrong.append(what)


def drawn_body(rng: np.random.Generator, at: int) -> dict[str, Any]:
    """Prompts that share beginnings, greedy or with a seed."""
    words = WORDS.split()
    start = " ".join(words[: int(rng.integers(1, 12))])
    end = " ".join(rng.choice(words, int(rng.integers(1, 60))))
    body: dict[str, Any] = {"model": NAME, "prompt": f"{start} {end}"}
    body["max_tokens"] = int(rng.integers(1, 25))
    if at % 3 == 0:
        return {**body, "temperature": 0}
    return {**body, "temperature": 0.9, "top_p": 0.9, "seed": at}


def known_cases(model: str, n: int, seed: int, chunk: int | None) -> list[Case]:
    """Answers of the engine alone: one request at a time."""
    rng = np.random.default_rng(seed)
    cases = []
    with Service.load(model, device="cpu", slots=1, chunk=chunk) as service:
        for at in range(n):
            body = drawn_body(rng, at)
            cases.append(Case(body, alone(service, body)))
    return cases


def alone(service: Service, body: dict[str, Any]) -> Answer:
    ended = threading.Event()
    found: list[Any] = []

    def listen(event: Any) -> None:
        if not isinstance(event, StreamItem):
            found.append(event)
            ended.set()

    fields = {key: body[key] for key in ("max_tokens", "temperature", "seed") if key in body}
    params = SamplingParams(top_k=0, min_p=0.0, **{"top_p": body.get("top_p", 1.0), **fields})
    service.submit(body["prompt"], params, listen=listen)
    ended.wait()
    (completion,) = found
    if not isinstance(completion, Completion):
        raise completion
    reason = "stop" if completion.stop_reason == "stop" else "length"
    return completion.text, reason


class Client:
    """One of many: draws what it does next until the time is over."""

    def __init__(self, url: str, cases: list[Case], report: Report, seed: tuple[int, ...]) -> None:
        self._rng, self._cases, self._report = np.random.default_rng(seed), cases, report
        headers = {"authorization": f"Bearer {KEY}"}
        self._http = httpx.AsyncClient(base_url=url, headers=headers, timeout=300)

    async def run(self, end_s: float) -> None:
        kinds = (self.ask, self.stream, self.go_away, self.be_slow)
        wrongs = (self.malformed, self.oversized, self.too_long, self.wrong_key)
        async with self._http:
            while time.monotonic() < end_s:
                some = kinds if self._rng.random() < 0.8 else wrongs
                what = some[int(self._rng.integers(len(some)))]
                try:
                    await what()
                    self._report.n_of[what.__name__] += 1
                except Exception as error:
                    self._report.wrong.append(f"{what.__name__}: {error!r}")

    def _case(self) -> Case:
        return self._cases[int(self._rng.integers(len(self._cases)))]

    async def _is_busy(self, response: httpx.Response) -> bool:
        """Told to come again: it waits as long as it is told, but not for ever."""
        if response.status_code != 429:
            self._report.check(response.status_code == 200, f"status {response.status_code}")
            return response.status_code != 200
        self._report.n_of["busy"] += 1
        wait = float(response.headers["retry-after"])
        self._report.check(wait >= 1, f"Retry-After: {wait}")
        await asyncio.sleep(min(wait, 2.0) * float(self._rng.random()))
        return True

    async def ask(self) -> None:
        case, begin = self._case(), time.monotonic()
        mark = {"x-request-id": f"{WHOLE}{self._rng.integers(2**62)}"}
        response = await self._http.post("/v1/completions", json=case.body, headers=mark)
        if await self._is_busy(response):
            return
        self._report.seconds.append(time.monotonic() - begin)
        choice = response.json()["choices"][0]
        self._compare(case, (choice["text"], choice["finish_reason"]))

    async def stream(self) -> None:
        await self._stream(self._case(), pause_s=0.0)

    async def be_slow(self) -> None:
        await self._stream(self._case(), pause_s=SLOW_S)

    async def go_away(self) -> None:
        """In mid-stream; what had come was right."""
        most = GONE_AFTER[int(self._rng.integers(len(GONE_AFTER)))]
        await self._stream(self._case(), pause_s=0.0, most=most)

    async def _stream(self, case: Case, pause_s: float, most: int | None = None) -> None:
        body = {**case.body, "stream": True}
        text, reason = "", ""
        async with self._http.stream("POST", "/v1/completions", json=body) as response:
            if await self._is_busy(response):
                return
            n = 0
            async for event in events(response):
                self._report.check("error" not in event, f"in a stream: {event}")
                for choice in event.get("choices", ()):
                    text += choice["text"]
                    reason = choice["finish_reason"] or reason
                n += 1
                if n == most:
                    self._report.check(case.expected[0].startswith(text), f"beginning {text!r}")
                    return
                await asyncio.sleep(pause_s)
        self._compare(case, (text, reason))

    def _compare(self, case: Case, got: Answer) -> None:
        self._report.check(got == case.expected, f"{case.body}: {got}, alone {case.expected}")

    async def malformed(self) -> None:
        bodies = (b"{", b"[]", b'{"model": "load", "prompt": 5.5}', b"", b"null")
        body = bodies[int(self._rng.integers(len(bodies)))]
        await self._refused(400, content=body, headers={"content-type": "application/json"})

    async def oversized(self) -> None:
        await self._refused(413, json={"model": NAME, "prompt": "a" * (MAX_BODY + 1)})

    async def too_long(self) -> None:
        await self._refused(400, json={"model": NAME, "prompt": [5] * 10_000})

    async def wrong_key(self) -> None:
        await self._refused(
            401, json={"model": NAME, "prompt": "a"}, headers={"authorization": "Bearer sk-x"}
        )

    async def _refused(self, status: int, **request: Any) -> None:
        response = await self._http.post("/v1/completions", **request)
        told = response.json().get("error", {})
        is_right = response.status_code == status and bool(told.get("message"))
        self._report.check(is_right, f"expected {status}, got {response.status_code}: {told}")


async def events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in response.aiter_lines():
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line[len("data: ") :])


class Server:
    """`m40llm serve` as a process of its own."""

    def __init__(self, model: str, folder: Path, *args: str) -> None:
        keys = folder / "keys.txt"
        keys.write_text(f"{KEY}\n")
        self._log = folder / "log.jsonl"
        command = [sys.executable, "-m", "m40llm", "serve", model, "--device", "cpu", "--port", "0"]
        command += ["--api-key-file", str(keys), "--max-body", str(MAX_BODY)]
        command += ["--name", NAME, "--json", *args]
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self._log.open("wb"), text=True
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the server did not start:\n{self._log.read_text()}")
        self.url = str(json.loads(line)["url"])

    def size(self) -> dict[str, int]:
        """File descriptors, threads and bytes of memory."""
        proc = Path(f"/proc/{self._process.pid}")
        status = (proc / "status").read_text()

        def number(name: str) -> int:
            found = re.search(rf"^{name}:\s+(\d+)", status, re.M)
            assert found is not None
            return int(found[1])

        return {
            "files": len(os.listdir(proc / "fd")),
            "threads": number("Threads"),
            "bytes": number("VmRSS") * 1024,
        }

    def end(self) -> int:
        """Told to end, it does: its exit code."""
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return -1

    def log(self) -> list[dict[str, Any]]:
        lines = self._log.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def said(self) -> str:
        return self._log.read_text()


async def idle(url: str) -> dict[str, float]:
    """The state of the server once nothing is under way: its gauges."""
    headers = {"authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as http:
        for _ in range(200):
            page = (await http.get("/metrics")).text
            gauges = dict(
                re.findall(r"^m40llm_(slots_busy|queue_length|kv_tokens) (\S+)", page, re.M)
            )
            if all(float(value) == 0 for value in gauges.values()):
                break
            await asyncio.sleep(0.1)
    return {name: float(value) for name, value in gauges.items()}


async def load(
    server: Server, cases: list[Case], n_clients: int, seconds: float, seed: int
) -> tuple[Report, list[dict[str, int]], dict[str, float]]:
    """(what the clients saw, the process's size when warm and after all, its gauges then)"""
    report = Report()
    end_s = time.monotonic() + seconds
    clients = [Client(server.url, cases, report, (seed, n)) for n in range(n_clients)]
    running = [asyncio.ensure_future(client.run(end_s)) for client in clients]
    await asyncio.sleep(seconds * WARM_SHARE)
    sizes = [server.size()]
    await asyncio.gather(*running)
    gauges = await idle(server.url)
    await asyncio.sleep(1.0)  # connections are closed by both sides
    return report, [*sizes, server.size()], gauges


def overheads_ms(log: list[dict[str, Any]]) -> list[float]:
    """Of each whole answer: from the request's arrival to its end, less what the engine took."""
    return sorted(
        1e3 * (line["seconds"] - line["engine_s"])
        for line in log
        if line.get("status") == 200 and line.get("request_id", "").startswith(WHOLE)
    )


def measure(
    model: str, *, n_clients: int, seconds: float, n_cases: int, seed: int, args: tuple[str, ...]
) -> dict[str, Any]:
    """One JSON document; `wrong` says what was."""
    chunk = int(args[args.index("--chunk") + 1]) if "--chunk" in args else None
    cases = known_cases(model, n_cases, seed, chunk)
    with tempfile.TemporaryDirectory() as folder:
        server = Server(model, Path(folder), *args)
        try:
            report, (warm, after), gauges = asyncio.run(
                load(server, cases, n_clients, seconds, seed)
            )
        finally:
            code = server.end()
        said, log = server.said(), server.log()
    report.check(code == 0, f"exit code {code}")
    report.check("Traceback" not in said and "internal error" not in said, "the log has an error")
    report.check(KEY not in said, "the log has a key")
    report.check(not any(gauges.values()), f"not idle: {gauges}")
    report.check(after["files"] <= warm["files"], f"files: {warm['files']} -> {after['files']}")
    overhead = overheads_ms(log)
    return {
        "model": model,
        "clients": n_clients,
        "seconds": seconds,
        "requests": dict(sorted(report.n_of.items())),
        "wrong": report.wrong[:20],
        "n_wrong": len(report.wrong),
        "exit_code": code,
        "warm": warm,
        "after": after,
        "answer_s": quantiles(sorted(report.seconds)),
        "overhead_ms": quantiles(overhead),
    }


def quantiles(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    at = {"median": 0.5, "p99": 0.99, "most": 1.0}
    return {name: round(values[int(q * (len(values) - 1))], 3) for name, q in at.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--max-waiting", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    wanted = parser.parse_args()
    args = ("--slots", str(wanted.slots), "--max-waiting", str(wanted.max_waiting))
    args += ("--max-seq-len", "1024")
    row = measure(
        wanted.model,
        n_clients=wanted.clients,
        seconds=wanted.seconds,
        n_cases=wanted.cases,
        seed=wanted.seed,
        args=args,
    )
    hand_over(row, wanted.out)
    sys.exit(1 if row["n_wrong"] else 0)


if __name__ == "__main__":
    main()
