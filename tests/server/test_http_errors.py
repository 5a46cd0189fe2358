"""Limits, keys, failures: each has a status and a code of its own, in OpenAI's form."""

import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from m40llm.errors import BusyError, DeviceError, KernelContractError, ModelFileError

HELLO: Any = [{"role": "user", "content": "hello"}]
CHAT = "/v1/chat/completions"
ASKED = {"model": "tiny", "messages": HELLO}


def error(answer: Any) -> tuple[int, str, str]:
    """Status, type, code."""
    told = answer.json()["error"]
    return answer.status_code, told["type"], told["code"]


@pytest.mark.parametrize(
    ("method", "url", "status", "code"),
    [
        ("GET", "/v2/models", 404, "not_found"),
        ("GET", "/docs", 404, "not_found"),
        ("GET", "/redoc", 404, "not_found"),
        ("GET", "/v1/models/", 404, "model_not_found"),
        ("GET", "/page/../../errors.py", 404, "not_found"),
        ("GET", "/%2e%2e/errors.py", 404, "not_found"),
        ("GET", CHAT, 405, "method_not_allowed"),
        ("PUT", "/health", 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("GET", "/v1/models/gpt-4", 404, "model_not_found"),
    ],
)
def test_no_such_thing(ask: Any, method: str, url: str, status: int, code: str) -> None:
    answer = ask(method, url)
    assert error(answer) == (status, "invalid_request_error", code)
    assert status != 405 or answer.headers["allow"]


@pytest.mark.parametrize(
    ("url", "status"),
    [
        *(("/", 200), ("/page.js", 200), ("/health", 200), ("/metrics", 200), ("/v1/models", 200)),
        *(("/v1/models/tiny", 200), ("/v1/models/gpt-4", 404), ("/openapi.json", 200)),
        *(("/nope", 404), (CHAT, 405)),
    ],
)
def test_head_is_get_without_the_body(ask: Any, url: str, status: int) -> None:
    whole, head = ask.get(url), ask("HEAD", url)
    assert (head.status_code, head.content) == (status, b"")
    of_request = {"x-request-id": ""}
    if url == "/metrics":  # it has some numbers more by then
        of_request["content-length"] = ""
    assert dict(head.headers) | of_request == dict(whole.headers) | of_request


def test_head_of_what_fails(ask_of: Any, service: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The key is wanted, the failure told, the log says HEAD."""
    caplog.set_level("INFO", "m40llm.server")
    ask = ask_of(keys=("secret",))
    assert ask("HEAD", "/v1/models").status_code == 401
    service.script.failure = "the device has failed"
    assert ask("HEAD", "/health").status_code == 503
    told = [r.fields for r in caplog.records if r.getMessage() == "request"]  # type: ignore[attr-defined]
    assert [(one["method"], one["endpoint"]) for one in told] == [
        ("HEAD", "none"),
        ("HEAD", "/health"),
    ]


def test_head_over_a_connection(served: Callable[..., str]) -> None:
    """Which goes on: no byte of a body stands before the next answer."""
    with httpx.Client(base_url=served()) as client:
        for url in ("/health", "/", "/v1/models", "/metrics"):
            assert client.head(url).status_code == 200
            assert client.get("/health").json()["status"] == "ok"
    assert httpx.put(f"{served()}/health").headers["allow"] == "GET, HEAD"


def test_request_ids_come_back(ask: Any) -> None:
    given = ask.get("/health", headers={"x-request-id": "mine-1.2:3"})
    assert given.headers["x-request-id"] == "mine-1.2:3"
    made = ask.get("/nope", headers={"x-request-id": "no\tline of a log"}).headers["x-request-id"]
    assert made.startswith("req_")
    assert ask.get("/health").headers["x-request-id"] != made


def test_bodies_have_a_limit(ask_of: Any) -> None:
    ask = ask_of(max_body_bytes=200)
    assert ask.post(CHAT, **ASKED).status_code == 200
    big = ask.post(CHAT, **ASKED, user="x" * 200)
    assert error(big) == (413, "invalid_request_error", "body_too_large")
    assert "200 bytes" in big.json()["error"]["message"]


def test_bodies_without_a_length_have_it_too(served: Callable[..., str]) -> None:
    """No more of it is read than is allowed."""
    n_sent = 0

    def pieces() -> Iterator[bytes]:
        nonlocal n_sent
        for _ in range(100_000):
            n_sent += 1
            yield b" " * 1000

    url = served(max_body_bytes=10_000)
    kind = {"content-type": "application/json"}
    try:
        answer = httpx.post(url + CHAT, content=pieces(), headers=kind, timeout=20)
        assert error(answer) == (413, "invalid_request_error", "body_too_large")
    except httpx.WriteError:  # it was cut while it was sending
        pass
    assert n_sent < 50_000


def test_bodies_that_do_not_come(served: Callable[..., str]) -> None:
    url = httpx.URL(served(body_timeout_s=0.2))
    with socket.create_connection((url.host, url.port), timeout=10) as slow:
        slow.sendall(b"POST /generate HTTP/1.1\r\nhost: a\r\ncontent-length: 50\r\n\r\n{")
        told = b"".join(iter(lambda: slow.recv(10_000), b""))
    assert told.startswith(b"HTTP/1.1 408 ")
    assert b"body_timeout" in told


@pytest.mark.parametrize(
    ("settings", "asked", "code", "told"),
    [
        ({"max_prompt": 3}, {}, "prompt_too_long", "this server takes at most 3"),
        (
            {},
            {"messages": [{"role": "user", "content": "a" * 99}]},
            *("context_length_exceeded", "the model's context holds 64"),
        ),
        ({"max_tokens": 5}, {"max_tokens": 6}, "max_tokens_too_large", "at most 5, 6 were asked"),
    ],
)
def test_limits_of_tokens(ask_of: Any, settings: Any, asked: Any, code: str, told: str) -> None:
    answer = ask_of(**settings).post(CHAT, **ASKED | asked)
    assert error(answer) == (400, "invalid_request_error", code)
    assert told in answer.json()["error"]["message"]


def test_the_cap_of_tokens_is_the_default(ask_of: Any) -> None:
    answer = ask_of(max_tokens=2).post(CHAT, **ASKED).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Bearer", "Basic secret-1", "secret-1"])
def test_keys(ask_of: Any, service: Any, header: str | None) -> None:
    ask = ask_of(keys=("secret-1", "secret-2"))
    headers = {} if header is None else {"authorization": header}
    answer = ask("POST", CHAT, json=ASKED, headers=headers)
    assert error(answer) == (401, "authentication_error", "invalid_api_key")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert "secret" not in answer.text
    assert service.asked == []
    for url in ("/v1/models", "/metrics", "/nope"):
        assert ask.get(url).status_code == 401
    for key in ("secret-1", "secret-2"):
        right = {"authorization": f"Bearer {key}"}
        assert ask("POST", CHAT, json=ASKED, headers=right).status_code == 200
    clients = {one["client"] for one in service.asked}
    assert len(clients) == 2
    assert not any("secret" in client for client in clients)


def test_what_needs_no_key(ask_of: Any) -> None:
    ask = ask_of(keys=("secret",), open_metrics=True)
    for url in ("/health", "/metrics", "/openapi.json"):
        assert ask.get(url).status_code == 200
    assert ask.get("/").status_code in (200, 404)


def test_full(ask: Any, service: Any, served: Callable[..., str]) -> None:
    service.script.busy = BusyError("64 requests wait already", 2.5)
    for stream in (False, True):
        answer = ask.post(CHAT, **ASKED, stream=stream)
        assert error(answer) == (429, "rate_limit_error", "queue_full")
        assert answer.headers["retry-after"] == "3"
    client = OpenAI(base_url=f"{served()}/v1", api_key="none", max_retries=0)
    with pytest.raises(openai.RateLimitError, match="64 requests wait"):
        client.chat.completions.create(model="tiny", messages=HELLO)


def test_full_for_the_second_of_two(ask: Any, service: Any) -> None:
    """What had been taken of the request is given up."""
    submit, service.script.token_s = service.submit, 0.05

    def second_is_one_too_many(*args: Any, **how: Any) -> Any:
        if service.asked:
            raise BusyError("full")
        return submit(*args, **how)

    service.submit = second_is_one_too_many
    assert error(ask.post(CHAT, **ASKED, n=2))[0] == 429
    assert service.tickets[0].is_cancelled


def test_deadlines(ask_of: Any, service: Any) -> None:
    service.script.go.clear()
    ask = ask_of(time_limit_s=0.2)
    answer = ask.post(CHAT, **ASKED)
    assert error(answer) == (504, "server_error", "time_limit")
    *_, last, _ = ask.post(CHAT, **ASKED, stream=True).text.split("\r\n\r\n")
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "time_limit"


@pytest.mark.parametrize(
    ("failure", "code", "told"),
    [
        (DeviceError("CUDA error 700"), "device_error", "CUDA error 700"),
        (ModelFileError("not finite"), "model_error", "not finite"),
        (KernelContractError("x: bug"), "internal_error", "its log says more"),
        (ZeroDivisionError("secret"), "internal_error", "its log says more"),
    ],
)
def test_failures(ask: Any, service: Any, failure: Any, code: str, told: str) -> None:
    service.script.error = failure
    for url, asked in ((CHAT, ASKED), ("/generate", {"prompt": "a"})):
        answer = ask.post(url, **asked)
        assert error(answer) == (500, "server_error", code)
        assert told in answer.json()["error"]["message"]
    streamed = ask.post(CHAT, **ASKED, stream=True)
    assert streamed.status_code == 200
    *said, last, end = streamed.text.split("\r\n\r\n")
    assert end == ""
    assert len(said) == 3  # the role, and two tokens
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == code
    *_, line = ask.post("/generate", prompt="a", stream=True).text.splitlines()
    assert json.loads(line)["error"]["code"] == code
    service.script.error = None
    assert ask.post(CHAT, **ASKED).status_code == 200


def test_failures_in_a_stream_reach_the_client(served: Callable[..., str], service: Any) -> None:
    service.script.error = DeviceError("CUDA error 700")
    client = OpenAI(base_url=f"{served()}/v1", api_key="none", max_retries=0)
    stream = client.chat.completions.create(model="tiny", messages=HELLO, stream=True)
    with pytest.raises(openai.APIError, match="CUDA error 700"):
        list(stream)


def test_bugs_of_an_endpoint_are_told_nobody(
    ask: Any, service: Any, caplog: pytest.LogCaptureFixture
) -> None:
    service.submit = None
    assert error(ask.post(CHAT, **ASKED)) == (500, "server_error", "internal_error")
    (bug,) = [record for record in caplog.records if record.getMessage() == "internal error"]
    assert bug.exc_info is not None


def test_health_and_shutting_down(ask: Any, service: Any) -> None:
    health = ask.get("/health")
    assert health.json() == {
        "status": "ok",
        "model": "tiny",
        "slots": 4,
        "running": 0,
        "waiting": 0,
    }
    service.script.failure = "the device has failed"
    assert error(ask.get("/health")) == (503, "server_error", "device_error")
    service.script.failure = ""
    ask.app.state.serving.is_closing = True
    for url in ("/health", "/v1/models"):
        answer = ask.get(url)
        assert error(answer) == (503, "server_error", "shutting_down")
        assert answer.headers["retry-after"] == "5"
    assert ask.get("/metrics").status_code == 200


def test_no_other_origin_may_ask_unless_told(ask: Any, ask_of: Any) -> None:
    origin = {"origin": "https://else.where"}
    assert "access-control-allow-origin" not in ask.get("/health", headers=origin).headers
    wants = {
        "access-control-request-method": "POST",
        "access-control-request-headers": "content-type",
    }
    assert ask("OPTIONS", CHAT, headers=origin | wants).status_code == 405
    ask = ask_of(cors_origins=("https://else.where",), keys=("secret",))
    answer = ask.get("/v1/models", headers=origin)
    assert answer.status_code == 401
    assert answer.headers["access-control-allow-origin"] == "https://else.where"
    assert ask("OPTIONS", CHAT, headers=origin | wants).status_code == 200
    other = ask.get("/health", headers={"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *(("localhost", 200), ("LOCALHOST:8000", 200), ("127.0.0.1:9", 200), ("[::1]:8000", 200)),
        *(("evil.example", 403), ("localhost.evil.example:8000", 403), ("127.0.0.2", 403)),
    ],
)
def test_names_of_the_server(ask_of: Any, host: str, status: int) -> None:
    ask = ask_of(hosts=("localhost", "127.0.0.1", "::1"))
    answer = ask.get("/v1/models", headers={"host": host})
    assert answer.status_code == status
    if status == 403:
        assert error(answer) == (403, "permission_error", "host_not_allowed")
    assert ask_of().get("/v1/models", headers={"host": host}).status_code == 200


def test_metrics(ask: Any, service: Any) -> None:
    ask.post(CHAT, **ASKED)
    ask.post(CHAT, **ASKED, stream=True)
    ask.post(CHAT, **ASKED, temperature=9)
    service.script.error = DeviceError("x")
    ask.post(CHAT, **ASKED)
    page = ask.get("/metrics")
    assert page.headers["content-type"].startswith("text/plain")
    found = dict(line.rsplit(" ", 1) for line in page.text.splitlines() if line[0] != "#")
    of_chat = f'm40llm_requests_total{{endpoint="{CHAT}",status='
    assert found[f'{of_chat}"200"}}'] == "2.0"
    assert found[f'{of_chat}"400"}}'] == "1.0"
    assert found[f'{of_chat}"500"}}'] == "1.0"
    assert found['m40llm_errors_total{code="device_error"}'] == "1.0"
    n_prompt = len(service.asked[0]["prompt"])
    assert float(found["m40llm_prompt_tokens_total"]) == 2 * n_prompt
    assert found["m40llm_generated_tokens_total"] == "26.0"
    assert found["m40llm_cached_tokens_total"] == "2.0"
    assert found["m40llm_ttft_seconds_count"] == "3.0"
    assert found["m40llm_tpot_seconds_count"] == "2.0"
    for name in (
        "slots",
        "slots_busy",
        "queue_length",
        "kv_tokens",
        "kv_capacity_tokens",
        "failed",
    ):
        assert f"m40llm_{name}" in found


def test_tokens_of_answers_that_took_too_long_are_counted(ask_of: Any, service: Any) -> None:
    """They were made, and cost what others cost; those of a request that only waited were not."""
    service.script.n_tokens, service.script.token_s = 10**6, 0.02
    ask = ask_of(time_limit_s=0.5)
    assert ask.post(CHAT, **ASKED).status_code == 504
    page = ask.get("/metrics").text
    found = dict(line.rsplit(" ", 1) for line in page.splitlines() if line[0] != "#")
    assert 5 < float(found["m40llm_generated_tokens_total"]) < 50
    assert float(found["m40llm_prompt_tokens_total"]) == len(service.asked[0]["prompt"])
    assert found["m40llm_tpot_seconds_count"] == "1.0"


def test_time_of_a_request_is_counted_from_its_arrival(ask_of: Any, service: Any) -> None:
    submit = service.submit

    def late(*args: Any, **how: Any) -> Any:
        time.sleep(0.3)
        return submit(*args, **how)

    service.submit = late
    assert ask_of(time_limit_s=0.2).post(CHAT, **ASKED, n=2).status_code == 504
