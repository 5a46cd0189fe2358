"""What one client may cost the others, and what is not an error of the server's own."""

import json
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from m40llm.errors import NotServingError, RequestError
from m40llm.server.keys import VARIABLE, read_keys
from m40llm.server.run import is_loopback
from m40llm.server.settings import Settings

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
DEEP = "[" * 50_000


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


@pytest.mark.parametrize(
    ("url", "body", "param"),
    [
        (CHAT, {"messages": [user("a"), user("b" * 50_000)]}, "messages"),
        (TEXT, {"prompt": ["a", "b" * 50_000]}, "prompt"),
        ("/v1/embeddings", {"input": "b" * 50_000}, "input"),
        ("/tokenize", {"text": "b" * 50_000}, "text"),
        ("/generate", {"prompt": "b" * 50_000}, "prompt"),
    ],
)
def test_long_texts_are_refused_before_their_tokens_are_found(
    ask: Any, service: Any, monkeypatch: Any, url: str, body: Any, param: str
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise AssertionError("its tokens were looked for")

    for name in ("encode", "encode_chat"):
        monkeypatch.setattr(service.llm.tokenizer, name, fails)
    response = ask.post(url, **({"model": "tiny"} if url.startswith("/v1") else {}), **body)
    told = response.json()["error"]
    assert (response.status_code, told["code"]) == (400, "context_length_exceeded")
    assert told["param"] == param


def test_more_answers_than_the_server_ever_takes(ask: Any, service: Any) -> None:
    service.most_requests = 5
    for body in ({"prompt": "a", "n": 6}, {"prompt": ["a"] * 6}, {"prompt": ["a"] * 3, "n": 2}):
        told = ask.post(TEXT, model="tiny", **body)
        assert (told.status_code, told.json()["error"]["code"]) == (400, "too_many_answers")
    assert not service.asked
    assert ask.post(TEXT, model="tiny", prompt="a", n=5).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [user("a")], "chat_template_kwargs": {"self": 1}},
        {
            "messages": [
                user("a"),
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {
                            "id": "call_1",
                            "type": "function",
                            "function": {"name": "f", "arguments": DEEP},
                        }
                    ],
                },
                {"role": "tool", "tool_call_id": "call_1", "content": "b"},
            ]
        },
    ],
)
def test_mistakes_of_clients_are_not_errors_of_ours(ask: Any, body: Any) -> None:
    response = ask.post(CHAT, model="tiny", **body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_while_nobody_is_served(ask: Any, service: Any) -> None:
    service.script.busy = NotServingError("the model is being loaded again", 10.0)
    response = ask.post(TEXT, model="tiny", prompt="a")
    assert (response.status_code, response.headers["retry-after"]) == (503, "10")


def test_preflights_of_openais_own_client(ask_of: Any) -> None:
    ask = ask_of(cors_origins=("https://page.example",))
    headers = {
        "origin": "https://page.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-stainless-lang",
    }
    response = ask("OPTIONS", CHAT, headers=headers)
    assert response.status_code == 200
    assert "x-stainless-lang" in response.headers["access-control-allow-headers"]


@pytest.mark.parametrize("value", ["", " ", ","])
def test_a_variable_without_a_key_opens_nothing(value: str) -> None:
    with pytest.raises(RequestError, match=VARIABLE):
        read_keys(None, value)


def test_a_key_may_have_a_number_sign(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\n  # theirs\nabc#def\n")
    assert read_keys(file, "x#y") == ("abc#def", "x#y")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.0.0.2", True),
        ("LOCALHOST", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("no such host", False),
    ],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize("grace_s", [float("inf"), float("nan"), -1.0, 1e9])
def test_grace_is_finite(grace_s: float) -> None:
    with pytest.raises(RequestError, match="grace_s"):
        Settings(names=("tiny",), grace_s=grace_s)


def test_an_answer_in_one_piece_that_nobody_takes_is_cut(
    served: Callable[..., str], service: Any
) -> None:
    """It would lie in the server's memory for as long as the client likes."""
    tokenizer = service.llm.tokenizer
    longest = max(range(tokenizer.vocab_size), key=lambda i: len(tokenizer.token_bytes(i)))
    body = json.dumps({"ids": [longest] * 600_000})
    url = served(send_timeout_s=0.3)
    port = int(url.rpartition(":")[2])
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", port))
        head = f"POST /detokenize HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(body)}\r\n"
        client.sendall(f"{head}content-type: application/json\r\n\r\n{body}".encode())
        client.recv(1, socket.MSG_PEEK)  # the answer has begun to come, however busy the machine
        time.sleep(3.0)  # takes nothing
        got = read_all(client)  # what the kernel had taken of it
    length = re.search(rb"content-length: (\d+)", got)
    assert length is not None
    assert len(got) < int(length[1])


def read_all(client: socket.socket) -> bytes:
    found = b""
    while piece := client.recv(65536):
        found += piece
    return found
