"""A real model behind the server: what it answers is what the engine answers alone."""

import asyncio
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from m40llm import LLM, SamplingParams
from m40llm.llm.service import Service
from m40llm.server.app import create_app
from m40llm.server.settings import Settings
from m40llm.testing import write_tiny_gguf

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
OFF = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    return write_tiny_gguf(folder / "tiny.gguf", tokenizer="bpe", chat_template=TEMPLATE)


@pytest.fixture(scope="module")
def alone(path: Path) -> Iterator[LLM]:
    with LLM.load(path, device="cpu") as llm:
        yield llm


@pytest.fixture(scope="module")
def app(path: Path) -> Iterator[Any]:
    with Service.load(path, device="cpu", slots=3) as service:
        yield create_app(service, Settings(names=("tiny",)))


def asked_of(app: Any, asks: list[tuple[str, dict[str, Any]]]) -> list[Any]:
    """All at once."""

    async def go() -> list[Any]:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://a") as client:
            coming = [client.post(url, json=body, timeout=60) for url, body in asks]
            return [answer.json() for answer in await asyncio.gather(*coming)]

    return asyncio.run(go())


def test_answers_in_company_are_those_of_the_engine_alone(app: Any, alone: LLM) -> None:
    draw = random.Random(0)
    asks: list[tuple[str, dict[str, Any]]] = []
    wanted: list[str] = []
    for number in range(12):
        text = "".join(draw.choices("abc de", k=draw.randint(1, 40))) + "."
        how: dict[str, Any] = {"max_tokens": draw.randint(1, 24)}
        if draw.random() < 0.5:
            how |= {"temperature": 0}
        else:
            how |= {"temperature": 1.5, "seed": number}
        params = SamplingParams(**OFF | how)
        if draw.random() < 0.5:
            asks.append(("/v1/completions", {"model": "tiny", "prompt": text, **how}))
            wanted.append(alone.generate(text, params).text)
        else:
            messages = [{"role": "user", "content": text}]
            asks.append(("/v1/chat/completions", {"model": "tiny", "messages": messages, **how}))
            wanted.append(alone.chat(messages, params).text)
    answers = asked_of(app, asks)
    choices = [answer["choices"][0] for answer in answers]
    said = [one["text"] if "text" in one else one["message"]["content"] for one in choices]
    assert said == wanted


def test_vectors_are_those_of_the_engine(app: Any, alone: LLM) -> None:
    texts = ["hello", "the quick brown fox", "a"]
    for pooling in ("mean", "last", "cls"):
        body = {"model": "tiny", "input": texts, "pooling": pooling}
        (answer,) = asked_of(app, [("/v1/embeddings", body)])
        vectors = np.array([one["embedding"] for one in answer["data"]], np.float32)
        np.testing.assert_allclose(vectors, alone.embed(texts, pooling), atol=1e-6)  # type: ignore[call-overload]


def test_schemas_hold(app: Any) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}
    schema["additionalProperties"] = False
    asked_format = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    body: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "go"}]}
    body |= {"response_format": asked_format, "n": 3, "seed": 1, "max_tokens": 60}
    (answer,) = asked_of(app, [("/v1/chat/completions", body)])
    for choice in answer["choices"]:
        text = "".join(choice["message"]["content"].split())  # it may write spaces to its end
        assert '{"n":1}'.startswith(text) or '{"n":2}'.startswith(text)
    body["response_format"] = {
        "type": "json_schema",
        "json_schema": {"name": "n", "schema": {"type": "nonsense"}},
    }
    (answer,) = asked_of(app, [("/v1/chat/completions", body)])
    assert answer["error"]["param"] == "response_format"


def test_what_the_engine_refuses_is_told(app: Any) -> None:
    asks = [
        ("/v1/completions", {"model": "tiny", "prompt": [10**6]}),
        ("/v1/completions", {"model": "tiny", "prompt": "a", "logit_bias": {"999999": 1}}),
        ("/v1/completions", {"model": "tiny", "prompt": "a", "stop_ids": [999999]}),
        ("/v1/embeddings", {"model": "tiny", "input": [10**6]}),
        ("/detokenize", {"ids": [10**6]}),
    ]
    answers = asked_of(app, asks)
    params = [answer["error"]["param"] for answer in answers]
    assert params == ["prompt", "logit_bias", "stop_ids", "input", "ids"]


def test_a_client_that_goes_away_frees_its_slot(app: Any) -> None:
    serving = app.state.serving

    async def leave() -> None:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://a") as client:
            body = {"prompt": "a", "ignore_eos": True}
            asking = asyncio.ensure_future(client.post("/generate", json=body))
            while serving.service.stats().n_running == 0 and not asking.done():
                await asyncio.sleep(0)
            asking.cancel()

    asyncio.run(leave())
    end = time.monotonic() + 5
    while serving.service.stats().n_running and time.monotonic() < end:
        time.sleep(0.001)
    assert serving.service.stats().n_running == 0
