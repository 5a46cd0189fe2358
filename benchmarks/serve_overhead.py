"""What HTTP adds to the time per token, with so many streams at once.

    python benchmarks/serve_overhead.py [--streams 32] [--tokens 100] [--repeats 5] [--step-ms 10]
        [--out FILE]
    python benchmarks/serve_overhead.py --shape 8b --type Q4_K_M     # on a card

With a slot for each stream, either a tiny model, whose every step is made to take so long besides,
as that of a large one on a card does, while the host waits; or, on a card, drawn weights of a real
shape. Measured in turns: by listeners in the server's process, and by as many clients over HTTP in
another one. What counts is the time in which all streams make tokens. One JSON document: the times
per token of each turn, their medians, and what HTTP adds.
"""

import argparse
import asyncio
import json
import multiprocessing
import statistics
import sys
import tempfile
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from gguf import TokenType
from rows import hand_over

from m40llm import SamplingParams, Service, StreamItem
from m40llm.bench.shapes import SHAPES, shape_of
from m40llm.model.hparams import HParams
from m40llm.testing import write_tiny_gguf

PROMPT = "ab"
Times = list[list[float]]  # of each stream: when each token came


def paced(path: Path, n_slots: int, step_s: float) -> Service:
    """A service each of whose rounds takes so much longer, with the interpreter free."""
    service = Service.load(path, device="cpu", slots=n_slots)
    scheduler = service._runner.scheduler
    run = scheduler.run

    def slow_run() -> bool:
        has_worked = run()
        if has_worked:
            time.sleep(step_s)
        return has_worked

    scheduler.run = slow_run  # type: ignore[method-assign]
    return service


def of_shape(path: Path, shape: str, kind: str, n_slots: int) -> Service:
    """A service of drawn weights on a card, which speaks the tiny file's vocabulary."""
    from m40llm.bench.synthetic import synthetic_model
    from m40llm.llm import load

    def drawn(model: Any, ops: Any, part: Any, plan: Any, progress: Any) -> Any:
        return synthetic_model(
            *(ops, shape_of(shape), kind),
            n_seqs=plan.n_seqs,
            max_seq_len=plan.max_seq_len,
            max_tokens=plan.max_tokens,
        )

    load._stage = drawn
    return Service.load(path, device="cuda", slots=n_slots)


def vocabulary_of(hp: HParams) -> dict[str, Any]:
    """For a file of that many tokens, each of which writes something."""
    kinds = [TokenType.NORMAL] * hp.vocab_size
    return {"vocab_size": hp.vocab_size, "metadata": {"tokenizer.ggml.token_type": kinds}}


def by_listeners(service: Service, n_streams: int, n_tokens: int) -> Times:
    times: Times = [[] for _ in range(n_streams)]
    ended = threading.Semaphore(0)
    params = SamplingParams(temperature=0, max_tokens=n_tokens, ignore_eos=True)

    def listener(own: list[float]) -> Any:
        def listen(event: Any) -> None:
            if isinstance(event, StreamItem):
                own.append(time.perf_counter())
            else:
                ended.release()

        return listen

    for own in times:
        service.submit(PROMPT, params, listen=listener(own))
    for _ in times:
        ended.acquire()
    return times


async def by_clients(port: int, n_streams: int, n_tokens: int) -> Times:
    clients = (client(port, n_tokens) for _ in range(n_streams))
    return list(await asyncio.gather(*clients))


async def client(port: int, n_tokens: int) -> list[float]:
    """A bare connection, so that the client costs little of what it measures."""
    body = json.dumps(
        {
            "model": "tiny",
            "prompt": PROMPT,
            "max_tokens": n_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
        }
    )
    head = (
        "POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write((head + body).encode())
    times = []
    while line := await reader.readline():
        if line.startswith(b'data: {"') and b'"text"' in line:
            times.append(time.perf_counter())
    writer.close()
    return times


def serve(pipe: Connection, path: Path, n_tokens: int, wanted: argparse.Namespace) -> None:
    """In a process of its own: a server, and times by listeners whenever they are asked for."""
    import uvicorn

    from m40llm.server.app import create_app
    from m40llm.server.run import bound, config_of
    from m40llm.server.settings import Settings

    n_streams = wanted.streams
    if wanted.shape:
        opened = of_shape(path, wanted.shape, wanted.type, n_streams)
    else:
        opened = paced(path, n_streams, wanted.step_ms / 1e3)
    with opened as service:
        by_listeners(service, n_streams, 3)
        app = create_app(service, Settings(names=("tiny",)))
        at = bound("127.0.0.1", 0)
        server = uvicorn.Server(config_of(app))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [at]})
        thread.start()
        pipe.send(at.getsockname()[1])
        while pipe.recv() == "listen":
            pipe.send(by_listeners(service, n_streams, n_tokens))
        server.should_exit = True
        thread.join()


def tpot_ms(times: Times, n_tokens: int) -> float:
    """While all streams made tokens. Those that come together are one event, those of no text none:
    the share of a stream's events that fell into that time is that of its tokens."""
    begin, end = max(own[0] for own in times), min(own[-1] for own in times)
    shares = [sum(begin <= at < end for at in own) / len(own) for own in times]
    return 1e3 * (end - begin) / (n_tokens * statistics.mean(shares))


def checked(times: Times, n_tokens: int) -> Times:
    """Streams of an event for most of their tokens, and one that says why it ends."""
    n_events = sorted({len(own) for own in times})
    if n_events[0] < n_tokens / 2 or n_events[-1] > n_tokens + 1:
        sys.exit(f"verification failed: {n_tokens} tokens a stream were {n_events} events")
    return times


def measure(wanted: argparse.Namespace) -> dict[str, Any]:
    n_streams, n_tokens = wanted.streams, wanted.tokens
    ours, theirs = multiprocessing.Pipe()
    spawn = multiprocessing.get_context("spawn")
    engine, http = [], []
    with tempfile.TemporaryDirectory() as folder:
        words = vocabulary_of(shape_of(wanted.shape)) if wanted.shape else {}
        length = max(128, 2 * n_tokens)
        path = write_tiny_gguf(Path(folder) / "tiny.gguf", context_length=length, **words)
        process = spawn.Process(target=serve, args=(theirs, path, n_tokens, wanted), daemon=True)
        process.start()
        port = ours.recv()
        asyncio.run(by_clients(port, n_streams, 3))
        for _ in range(wanted.repeats):
            ours.send("listen")
            engine.append(tpot_ms(checked(ours.recv(), n_tokens), n_tokens))
            heard = asyncio.run(by_clients(port, n_streams, n_tokens))
            http.append(tpot_ms(checked(heard, n_tokens), n_tokens))
        ours.send("end")
        process.join()
    engine_ms, http_ms = statistics.median(engine), statistics.median(http)
    what = {"shape": wanted.shape, "type": wanted.type} if wanted.shape else {}
    return {
        "streams": n_streams,
        "tokens": n_tokens,
        **(what or {"step_ms": wanted.step_ms}),
        "engine_tpot_ms": round(engine_ms, 3),
        "http_tpot_ms": round(http_ms, 3),
        "http_adds": round(http_ms / engine_ms - 1, 4),
        "engine_each_ms": [round(one, 3) for one in engine],
        "http_each_ms": [round(one, 3) for one in http],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--step-ms", type=float, default=10.0, help="of the tiny model")
    parser.add_argument("--shape", choices=sorted(SHAPES), help="drawn weights, on a card")
    parser.add_argument("--type", default="Q4_K_M", help="of the drawn weights")
    parser.add_argument("--out", type=Path)
    wanted = parser.parse_args()
    hand_over(measure(wanted), wanted.out)


if __name__ == "__main__":
    main()
