"""What is wrong with a request is told in OpenAI's form, by name; nothing is half honoured."""

from typing import Any

import pytest

HELLO = [{"role": "user", "content": "hello"}]
CHAT, TEXT, VECTORS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"


def refused(answer: Any) -> tuple[int, str | None, str | None, str]:
    """Status, param, code, message."""
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] in ("invalid_request_error", "server_error")
    return answer.status_code, error["param"], error["code"], error["message"]


@pytest.mark.parametrize(
    ("change", "param", "code", "told"),
    [
        ({"messages": None}, "messages", "invalid_value", "list"),
        ({"messages": []}, "messages", "invalid_value", "at least 1"),
        ({"messages": "hello"}, "messages", "invalid_value", "got 'hello'"),
        ({"messages": [{"role": "king", "content": "a"}]}, "messages[0]", "invalid_value", "king"),
        ({"messages": [{"content": "a"}]}, "messages[0]", "invalid_value", "role"),
        (
            {"messages": [*HELLO, {"role": "user"}]},
            *("messages[1].content", "missing_required_parameter", "missing"),
        ),
        (
            {"messages": [{"role": "user", "content": 5}]},
            *("messages[0].content", "invalid_value", "string or input should be a valid list"),
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            *("messages[0].content[0].type", "invalid_value", "should be 'text', got 'image_url'"),
        ),
        (
            {"messages": [{"role": "user", "content": "a", "x": 1}]},
            *("messages[0].x", "unknown_parameter", "Unrecognized request argument supplied"),
        ),
        (
            {"messages": [{"role": "assistant", "content": "a", "function_call": {}}]},
            *("messages[0].function_call", "unsupported_parameter", "does not support"),
        ),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].tool_call_id", None, ""),
        (
            {"messages": [{"role": "user", "content": "refuse"}]},
            *("messages", "invalid_value", "the chat template says: not this"),
        ),
        ({"messages": [{"role": "user", "content": "a" * 99}]}, "messages", None, "context holds"),
        ({"model": "gpt-4"}, "model", "model_not_found", "this server has 'tiny'"),
        ({"model": 5}, "model", "invalid_value", "string, got 5"),
        ({"foo": 1}, "foo", "unknown_parameter", "Unrecognized request argument supplied: foo"),
        ({"temperature": 2.5}, "temperature", "invalid_value", "less than or equal to 2, got 2.5"),
        ({"temperature": "hot"}, "temperature", "invalid_value", "number, got 'hot'"),
        ({"temperature": True}, "temperature", "invalid_value", "number, got True"),
        ({"top_p": 1.5}, "top_p", "invalid_value", "equal to 1"),
        ({"n": 0}, "n", "invalid_value", "equal to 1"),
        ({"n": 1.5}, "n", "invalid_value", "integer"),
        ({"n": 1e300}, "n", "invalid_value", "equal to 128"),
        ({"top_k": 1e300}, "top_k", "invalid_value", "integer from 0"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value", "equal to 1"),
        ({"max_tokens": 3, "max_completion_tokens": 3}, "max_tokens", "invalid_value", "beside"),
        ({"stop": ["a"] * 5}, "stop", "invalid_value", "at most 4 items"),
        ({"stop": ""}, "stop", "invalid_value", "at least 1 character"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x", "invalid_value", "pattern"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5", "invalid_value", "equal to 100"),
        ({"presence_penalty": 3}, "presence_penalty", "invalid_value", "equal to 2"),
        ({"top_logprobs": 3}, "top_logprobs", "invalid_value", "expected logprobs true"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value", "equal to 20"),
        ({"logprobs": 3}, "logprobs", "invalid_value", "boolean"),
        ({"stream": "yes"}, "stream", "invalid_value", "boolean"),
        ({"stream_options": {}}, "stream_options", "invalid_value", "expected stream true"),
        ({"response_format": {"type": "yaml"}}, "response_format", "invalid_value", "yaml"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {}}},
            *("response_format.json_schema.name", "missing_required_parameter", "missing"),
        ),
        (
            {"response_format": {"type": "json_object"}, "json_schema": {}},
            *("json_schema", "invalid_value", "no response_format beside it"),
        ),
        ({"regex": "a", "lark": "b"}, "lark", "invalid_value", "expected no regex beside it"),
        ({"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs", "invalid_value", "tools"),
        ({"samplers": ["luck"]}, "samplers", "invalid_value", "expected some of penalties"),
        ({"mirostat": 1}, "mirostat", "invalid_value", "expected 0 (off) or 2"),
        ({"modalities": ["text", "audio"]}, "modalities[1]", "invalid_value", "'text'"),
        ({"audio": {}}, "audio", "unsupported_parameter", "does not support"),
        ({"functions": []}, "functions", "unsupported_parameter", "does not support"),
        ({"reasoning_effort": "low"}, "reasoning_effort", "unsupported_parameter", "not support"),
        ({"web_search_options": {}}, "web_search_options", "unsupported_parameter", "not support"),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value", "expected tools beside it"),
        (
            {"tools": [{"type": "function", "function": {"name": "f"}}]},
            *("tools", "invalid_value", "the model's chat template has no tools"),
        ),
    ],
)
def test_chats(
    ask: Any, service: Any, change: dict[str, Any], param: str, code: str | None, told: str
) -> None:
    for stream in (False, True):
        asked = {"model": "tiny", "messages": HELLO, "stream": stream} | change
        if stream and "stream_options" in change:
            continue
        status, at, got, message = refused(ask.post(CHAT, **asked))
        assert status == (404 if param == "model" and change["model"] == "gpt-4" else 400)
        assert at == param
        assert code is None or got == code
        assert told in message
    assert service.asked == []


@pytest.mark.parametrize(
    ("change", "param", "told"),
    [
        ({"prompt": None}, "prompt", ""),
        ({"prompt": 5}, "prompt", "got 5"),
        ({"prompt": []}, "prompt", "at least 1 item"),
        ({"prompt": [[]]}, "prompt[0]", "at least 1 item"),
        ({"prompt": ["a", 5]}, None, ""),
        ({"prompt": [-1]}, "prompt[0]", "equal to 0"),
        ({"prompt": ""}, "prompt", "empty"),
        ({"prompt": "\ud800"}, "prompt", "surrogate"),
        ({"logprobs": 6}, "logprobs", "equal to 5"),
        ({"logprobs": True}, "logprobs", "integer"),
        ({"logprobs": 1, "echo": True}, "echo", "leave logprobs out"),
        ({"best_of": 2}, "best_of", "expected n (1)"),
        ({"suffix": "end"}, "suffix", "does not support"),
        ({"messages": HELLO}, "messages", "Unrecognized"),
        ({"model": "other"}, "model", "does not exist"),
        ({"prompt": [5] * 65}, "prompt", "65 tokens; the model's context holds 64"),
    ],
)
def test_texts(
    ask: Any, service: Any, change: dict[str, Any], param: str | None, told: str
) -> None:
    status, at, _, message = refused(ask.post(TEXT, **{"model": "tiny", "prompt": "a"} | change))
    assert status == (404 if "model" in change else 400)
    assert param is None or at == param
    assert told in message
    assert service.asked == []


@pytest.mark.parametrize(
    ("change", "param", "told"),
    [
        ({"input": None}, "input", ""),
        ({"input": ""}, "input", "at least 1 character"),
        ({"input": []}, "input", "at least 1 item"),
        ({"input": ["a", ""]}, "input[1]", "at least 1 character"),
        ({"input": [[1], []]}, "input[1]", "at least 1 item"),
        ({"input": ["a"] * 2049}, "input", "at most 2048 items"),
        ({"input": {"a": 1}}, "input", ""),
        ({"encoding_format": "hex"}, "encoding_format", "'float' or 'base64'"),
        ({"dimensions": 5}, "dimensions", "the model's vectors have 8"),
        ({"dimensions": 0}, "dimensions", "equal to 1"),
        ({"pooling": "max"}, "pooling", "'mean'"),
        ({"user": "me", "temperature": 1}, "temperature", "Unrecognized"),
        ({"model": ""}, "model", "does not exist"),
    ],
)
def test_vectors(ask: Any, service: Any, change: dict[str, Any], param: str, told: str) -> None:
    status, at, _, message = refused(ask.post(VECTORS, **{"model": "tiny", "input": "a"} | change))
    assert status == (404 if "model" in change else 400)
    assert at == param
    assert told in message
    assert service.asked == []


@pytest.mark.parametrize(
    ("url", "asked", "param"),
    [
        ("/generate", {}, "prompt"),
        ("/generate", {"prompt": 5}, "prompt"),
        ("/generate", {"prompt": ["a"]}, "prompt"),
        ("/generate", {"prompt": "a", "max_tokens": -1}, "max_tokens"),
        ("/generate", {"prompt": "a", "temperature": -1}, "temperature"),
        ("/generate", {"prompt": "a", "top_k": 1.5}, "top_k"),
        ("/generate", {"prompt": "a", "top_p": 2}, "top_p"),
        ("/generate", {"prompt": "a", "seed": "x"}, "seed"),
        ("/generate", {"prompt": "a", "prompt_format": "chatml"}, "prompt_format"),
        ("/generate", {"prompt": "a", "model": "tiny"}, "model"),
        ("/generate", {"prompt": ""}, "prompt"),
        ("/tokenize", {}, "text"),
        ("/tokenize", {"text": 5}, "text"),
        ("/tokenize", {"text": "a", "add_bos": "yes"}, "add_bos"),
        ("/tokenize", {"text": "a", "x": 1}, "x"),
        ("/tokenize", {"text": "\udcff"}, "text"),
        ("/detokenize", {}, "ids"),
        ("/detokenize", {"ids": "a"}, "ids"),
        ("/detokenize", {"ids": [1.5]}, "ids[0]"),
        ("/detokenize", {"ids": [10**6]}, "ids"),
        ("/detokenize", {"ids": [2**70]}, "ids[0]"),
    ],
)
def test_ours(ask: Any, service: Any, url: str, asked: dict[str, Any], param: str) -> None:
    status, at, _, _ = refused(ask.post(url, **asked))
    assert (status, at) == (400, param)
    assert service.asked == []


@pytest.mark.parametrize(
    ("content", "kind", "told"),
    [
        (b"{nope", "application/json", "the body is no JSON"),
        (b"", "application/json", ""),
        (b"[]", "application/json", "expected a JSON object"),
        (b'"text"', "application/json", "expected a JSON object"),
        (b"{}", "text/plain", "with content-type application/json"),
        (b"a=b", "application/x-www-form-urlencoded", "with content-type application/json"),
        (b"[" * 100_000, "application/json", "parsing the body"),
        (b"\xff\xfe", "application/json", ""),
        (b'{"model": "tiny", "messages": [], "temperature": NaN}', "application/json", ""),
        (b'{"model": "tiny", "messages": [], "n": 1' + b"0" * 5000 + b"}", "application/json", ""),
    ],
)
def test_bodies_that_are_none(ask: Any, content: bytes, kind: str, told: str) -> None:
    answer = ask("POST", CHAT, content=content, headers={"content-type": kind})
    status, _, _, message = refused(answer)
    assert status == 400
    assert told in message


def test_a_missing_package_is_named(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m40llm.server.fields.find_spec", lambda name: None)
    asked = {"model": "tiny", "messages": HELLO, "response_format": {"type": "json_object"}}
    status, param, code, message = refused(ask.post(CHAT, **asked))
    assert (status, param, code) == (501, "response_format", "constrain_missing")
    assert 'pip install "m40llm[constrain]"' in message
    status, param, _, _ = refused(ask.post("/generate", prompt="a", regex="b"))
    assert (status, param) == (501, "regex")
