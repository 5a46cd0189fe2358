"""/v1/completions and /v1/embeddings, asked by the official client; /generate and the tokenizer."""

import base64
import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import openai
import pytest
from openai import OpenAI

SAID = " the quick brow"


@pytest.fixture
def client(served: Callable[..., str]) -> OpenAI:
    return OpenAI(base_url=f"{served()}/v1", api_key="none", max_retries=0)


def test_a_text_goes_on(client: OpenAI, service: Any) -> None:
    answer = client.completions.create(model="tiny", prompt="hello")
    assert answer.object == "text_completion"
    assert answer.choices[0].text == SAID
    assert answer.choices[0].finish_reason == "stop"
    assert service.asked[0]["prompt"] == service.llm.tokenizer.encode("hello")
    assert service.asked[0]["params"].max_tokens == 16  # OpenAI's default


@pytest.mark.parametrize(
    ("prompt", "n_prompts"),
    [("a", 1), ([5, 6], 1), (["a", "b"], 2), ([[5, 6], [7]], 2), (["a"], 1)],
)
def test_prompts_of_all_kinds(client: OpenAI, service: Any, prompt: Any, n_prompts: int) -> None:
    answer = client.completions.create(model="tiny", prompt=prompt, n=2, seed=5)
    assert [choice.index for choice in answer.choices] == list(range(2 * n_prompts))
    assert [one["params"].seed for one in service.asked] == [5, 6] * n_prompts
    prompts = [tuple(one["prompt"]) for one in service.asked]
    assert prompts[::2] == prompts[1::2]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == sum(map(len, prompts[::2]))


def test_echo(client: OpenAI) -> None:
    how: Any = {"model": "tiny", "prompt": ["hello", "you"], "echo": True, "max_tokens": 3}
    answer = client.completions.create(**how)
    assert [choice.text for choice in answer.choices] == ["hello the q", "you the q"]
    texts = ["", ""]
    for chunk in client.completions.create(**how, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == ["hello the q", "you the q"]


def test_logprobs_have_places(client: OpenAI) -> None:
    how: Any = {"model": "tiny", "prompt": "a", "logprobs": 2, "max_tokens": 14}
    logprobs = client.completions.create(**how).choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.text_offset is not None
    assert "".join(logprobs.tokens) == SAID
    for token, at in zip(logprobs.tokens, logprobs.text_offset, strict=True):
        assert SAID[at:].startswith(token)
    assert all(len(top) == 2 for top in logprobs.top_logprobs or [])
    streamed: list[str] = []
    for chunk in client.completions.create(**how, stream=True):
        if chunk.choices and chunk.choices[0].logprobs is not None:
            streamed += chunk.choices[0].logprobs.tokens or []
    assert streamed == logprobs.tokens


def test_bytes_that_are_no_text_are_spelled(client: OpenAI, service: Any) -> None:
    service.script.text = "é"  # two bytes, two tokens
    how: Any = {"model": "tiny", "prompt": "a", "logprobs": 0, "max_tokens": 2}
    choice = client.completions.create(**how).choices[0]
    assert choice.text == "é"
    assert choice.logprobs is not None
    assert choice.logprobs.tokens == ["bytes:\\xc3", "bytes:\\xa9"]
    assert choice.logprobs.text_offset == [0, 0]


def test_usage_of_a_stream(client: OpenAI) -> None:
    how: Any = {"stream": True, "stream_options": {"include_usage": True}}
    *said, last = client.completions.create(model="tiny", prompt=["a", "bb"], **how)
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (3, 26)
    assert sum(chunk.choices[0].finish_reason == "stop" for chunk in said) == 2


@pytest.mark.parametrize("given", ["hello", [5, 6, 7], ["hello", "you"], [[5], [6, 7]]])
def test_embeddings(client: OpenAI, service: Any, given: Any) -> None:
    answer = client.embeddings.create(model="tiny", input=given)  # asks for base64
    floats = client.embeddings.create(model="tiny", input=given, encoding_format="float")
    assert [one.embedding for one in answer.data] == [one.embedding for one in floats.data]
    prompts = service.asked[0]["prompts"]
    assert [one.embedding[0] for one in answer.data] == [len(prompt) for prompt in prompts]
    assert [one.index for one in answer.data] == list(range(len(prompts)))
    assert answer.usage.prompt_tokens == sum(map(len, prompts))
    assert service.asked[0]["pooling"] == "mean"


def test_embeddings_in_base64(ask: Any) -> None:
    answer = ask.post("/v1/embeddings", model="tiny", input="hello", encoding_format="base64")
    decoded = np.frombuffer(base64.b64decode(answer.json()["data"][0]["embedding"]), "<f4")
    assert decoded.tolist()[1:] == [1, 2, 3, 4, 5, 6, 7]


def test_how_embeddings_are_made(client: OpenAI, service: Any) -> None:
    how: Any = {"pooling": "last", "normalise": False}
    client.embeddings.create(model="tiny", input="a", dimensions=8, extra_body=how)
    assert (service.asked[0]["pooling"], service.asked[0]["normalise"]) == ("last", False)
    with pytest.raises(openai.BadRequestError, match="the model's vectors have 8, 3 were asked"):
        client.embeddings.create(model="tiny", input="a", dimensions=3)


def test_generate(ask: Any, service: Any) -> None:
    """As the Rust m40-llm has it; defaults are those of SamplingParams."""
    answer = ask.post("/generate", prompt="hello", max_tokens=3, top_k=7, seed=3)
    assert answer.json() == {"output": " the q"}
    params = service.asked[0]["params"]
    assert (params.temperature, params.top_k, params.min_p, params.seed) == (0.8, 7, 0.05, 3)
    assert service.asked[0]["prompt"] == service.llm.tokenizer.encode("hello")


def test_generate_streams_lines(ask: Any) -> None:
    answer = ask.post("/generate", prompt="hello", stream=True)
    assert answer.headers["content-type"] == "application/jsonl"
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert lines[-1] == {"output": SAID, "done": True}
    outputs = [line["output"] for line in lines]
    assert all(b.startswith(a) for a, b in pairwise(outputs))
    assert not any(line["done"] for line in lines[:-1])


def test_generate_in_llama3s_format(ask: Any, service: Any) -> None:
    refused = ask.post("/generate", prompt="hi", prompt_format="llama3-chat")
    assert refused.json()["error"]["param"] == "prompt_format"
    service.llm.tokenizer.chat_template = "{# <|start_header_id|> #}"
    service.llm.max_seq_len = 200
    for how in ({}, {"prompt_format": "auto"}, {"prompt_format": "llama3-chat"}):
        ask.post("/generate", prompt=" hi ", **how)
    ask.post("/generate", prompt="hi", prompt_format="raw")
    texts = [service.llm.tokenizer.decode(one["prompt"]) for one in service.asked]
    assert texts[0].startswith("<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhi<")
    assert texts == [texts[0]] * 3 + ["hi"]


def test_tokenize_and_back(ask: Any, service: Any) -> None:
    tokenizer = service.llm.tokenizer
    made = ask.post("/tokenize", text="hello, wörld").json()
    assert made["ids"] == tokenizer.encode("hello, wörld")
    assert made["n_tokens"] == len(made["ids"]) == len(made["pieces"])
    assert made["pieces"][0] == "hell"
    assert ask.post("/detokenize", ids=made["ids"]).json() == {"text": "hello, wörld"}
    special = min(tokenizer.stop_ids)
    text = tokenizer.decode([special])
    assert ask.post("/tokenize", text=text, parse_special=True).json()["ids"] == [special]
    assert ask.post("/detokenize", ids=[special], skip_special=True).json() == {"text": ""}
