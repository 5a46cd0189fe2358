"""/v1/chat/completions, asked by the official client over a socket."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

HELLO: Any = [{"role": "user", "content": "hello"}]
SAID = " the quick brow"  # the script's twelve tokens


@pytest.fixture
def client(served: Callable[..., str]) -> OpenAI:
    return OpenAI(base_url=f"{served()}/v1", api_key="none", max_retries=0)


def test_an_answer(client: OpenAI, service: Any) -> None:
    answer = client.chat.completions.create(model="tiny", messages=HELLO)
    (choice,) = answer.choices
    assert answer.object == "chat.completion"
    assert answer.model == "tiny"
    assert (choice.index, choice.finish_reason) == (0, "stop")
    assert (choice.message.role, choice.message.content) == ("assistant", SAID)
    assert choice.logprobs is None
    prompt = service.asked[0]["prompt"]
    assert service.llm.tokenizer.decode(prompt) == "<user>hello<assistant>"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.completion_tokens == 13  # with the stop token
    assert answer.usage.total_tokens == len(prompt) + 13
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 1


def test_defaults_are_openais(client: OpenAI, service: Any) -> None:
    client.chat.completions.create(model="tiny", messages=HELLO)
    params = service.asked[0]["params"]
    assert (params.temperature, params.top_k, params.top_p, params.min_p) == (1.0, 0, 1.0, 0.0)
    assert (params.seed, params.max_tokens, params.logprobs) == (None, None, None)


def test_fields_reach_the_engine(client: OpenAI, service: Any) -> None:
    client.chat.completions.create(
        model="tiny",
        messages=HELLO,
        max_completion_tokens=3,
        temperature=0.5,
        top_p=0.9,
        presence_penalty=1,
        frequency_penalty=-1,
        logit_bias={"17": -100},
        stop=["x", "y"],
        seed=7,
        user="me",
        metadata={"a": "b"},
        store=True,
        service_tier="auto",
        extra_body={
            "top_k": 5,
            "min_p": 0.1,
            "repetition_penalty": 1.1,
            "xtc_probability": 0.5,
            "mirostat": 2,
            "samplers": ["top_k", "temperature"],
            "stop_ids": [9],
            "dry_breakers": ["\n", 3],
        },
    )
    params = service.asked[0]["params"]
    assert (params.max_tokens, params.temperature, params.top_p, params.top_k) == (3, 0.5, 0.9, 5)
    assert (params.presence_penalty, params.frequency_penalty) == (1, -1)
    assert params.logit_bias == {17: -100}
    assert params.stop == ("x", "y")
    assert (params.seed, params.min_p, params.repetition_penalty) == (7, 0.1, 1.1)
    assert (params.xtc_probability, params.mirostat) == (0.5, 2)
    assert params.samplers == ("top_k", "temperature")
    assert (params.stop_ids, params.dry_breakers) == ((9,), ("\n", 3))


def test_top_p_of_zero_keeps_the_likeliest(client: OpenAI, service: Any) -> None:
    client.chat.completions.create(model="tiny", messages=HELLO, top_p=0, seed=-1)
    assert 0 < service.asked[0]["params"].top_p < 1e-6
    assert service.asked[0]["params"].seed == 2**63 - 1


def test_streams_are_the_answer_in_pieces(client: OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="tiny",
            messages=HELLO,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    *said, last = chunks
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 13
    assert all(chunk.usage is None and chunk.object == "chat.completion.chunk" for chunk in said)
    assert len({chunk.id for chunk in chunks}) == 1
    assert said[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in said) == SAID
    assert [chunk.choices[0].finish_reason for chunk in said[-2:]] == [None, "stop"]


def test_streams_end_with_done(ask: Any) -> None:
    answer = ask.post("/v1/chat/completions", model="tiny", messages=HELLO, stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = answer.text.split("\r\n\r\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(json.loads(event.removeprefix("data: ")) for event in events[:-2])


def test_several_answers_have_seeds_of_their_own(client: OpenAI, service: Any) -> None:
    answer = client.chat.completions.create(model="tiny", messages=HELLO, n=3, seed=2**63 - 2)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert [one["params"].seed for one in service.asked] == [2**63 - 2, 2**63 - 1, 0]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(service.asked[0]["prompt"])
    assert answer.usage.completion_tokens == 39
    chunks = client.chat.completions.create(model="tiny", messages=HELLO, n=2, stream=True)
    said = ["", ""]
    for chunk in chunks:
        said[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert said == [SAID, SAID]


def test_length_and_stop_strings(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=3)
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.content == " the q"
    answer = client.chat.completions.create(model="tiny", messages=HELLO, stop=" bro")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content == " the quick"


def test_logprobs(client: OpenAI) -> None:
    how: Any = {"model": "tiny", "messages": HELLO, "logprobs": True, "top_logprobs": 2}
    answer = client.chat.completions.create(**how)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert "".join(token.token for token in logprobs.content) == SAID  # without the stop token
    first = logprobs.content[0]
    assert (first.token, first.logprob, first.bytes) == (" the", -0.5, list(b" the"))
    assert [top.logprob for top in first.top_logprobs] == [-0.5, -1.5]
    streamed = [
        token
        for chunk in client.chat.completions.create(**how, stream=True)
        if chunk.choices[0].logprobs is not None
        for token in chunk.choices[0].logprobs.content or []
    ]
    assert streamed == logprobs.content
    plain = client.chat.completions.create(model="tiny", messages=HELLO, logprobs=True)
    assert plain.choices[0].logprobs is not None
    assert plain.choices[0].logprobs.content[0].top_logprobs == []  # type: ignore[index]


@pytest.mark.parametrize(
    ("asked", "schema"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"type": "object"}),
        (
            {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "array"}}},
            {"type": "array"},
        ),
        ({"type": "json_schema", "json_schema": {"name": "n", "strict": True}}, {"type": "object"}),
    ],
)
def test_response_format(client: OpenAI, service: Any, asked: Any, schema: Any) -> None:
    client.chat.completions.create(model="tiny", messages=HELLO, response_format=asked)
    assert service.asked[0]["params"].json_schema == schema


def test_messages_of_all_kinds(client: OpenAI, service: Any) -> None:
    client.chat.completions.create(
        model="tiny",
        messages=[
            {"role": "developer", "content": "be brief"},
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            },
            {"role": "assistant", "content": "c", "name": "x"},
            {"role": "user", "content": ""},
        ],
        extra_body={"chat_template_kwargs": {"shout": True}},
    )
    text = service.llm.tokenizer.decode(service.asked[0]["prompt"])
    assert text == "<system>be brief<user>a\nb<assistant>c<user>!<assistant>"


def test_answers_can_be_sent_back(client: OpenAI) -> None:
    """A message of the client's own type, with all its nulls, is a message."""
    answer = client.chat.completions.create(model="tiny", messages=HELLO)
    said: Any = answer.choices[0].message
    client.chat.completions.create(model="tiny", messages=[*HELLO, said, *HELLO])


def test_many_at_once(served: Callable[..., str]) -> None:
    async def all_of_them(url: str) -> list[str | None]:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:

            async def one(n: int) -> str | None:
                stream = n % 2 == 0
                how: Any = {"model": "tiny", "messages": HELLO, "stream": stream}
                got: Any = await client.chat.completions.create(**how)
                if not stream:
                    return got.choices[0].message.content  # type: ignore[no-any-return]
                return "".join([c.choices[0].delta.content or "" async for c in got])

            return await asyncio.gather(*map(one, range(24)))

    assert asyncio.run(all_of_them(served())) == [SAID] * 24


def test_adapters_are_models(served: Callable[..., str], service: Any) -> None:
    client = OpenAI(base_url=f"{served(loras=('poet',))}/v1", api_key="none", max_retries=0)
    assert [model.id for model in client.models.list()] == ["tiny", "poet"]
    answer = client.chat.completions.create(model="poet", messages=HELLO)
    assert answer.model == "poet"
    client.chat.completions.create(model="tiny", messages=HELLO)
    assert [one["lora"] for one in service.asked] == ["poet", None]
    assert client.models.retrieve("poet").owned_by == "m40llm"
    with pytest.raises(openai.NotFoundError, match="'gpt-4' does not exist"):
        client.models.retrieve("gpt-4")
