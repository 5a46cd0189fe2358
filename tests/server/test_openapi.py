"""The OpenAPI document says what the server does: schemathesis asks what it allows, and does not.

By default some examples an endpoint; HYPOTHESIS_PROFILE=fuzz draws as many as it has.
"""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import openai
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import positive_data_acceptance

from m40llm.engine.sampling_params import SamplingParams
from m40llm.server.app import create_app
from m40llm.server.chat_schema import ChatRequest
from m40llm.server.completions import CompletionRequest
from m40llm.server.fields import Samplers
from m40llm.server.settings import Settings
from m40llm.testing.scripted import ScriptedService

N_EXAMPLES = 2_000 if os.environ.get("HYPOTHESIS_PROFILE") == "fuzz" else 12
_OURS = {"max_tokens", "stop", "logprobs", "logit_bias", "presence_penalty", "frequency_penalty"}


@pytest.fixture(scope="module")
def app(tiny_path: Path) -> Any:
    service: Any = ScriptedService(tiny_path)
    return create_app(service, Settings(names=("tiny",), max_body_bytes=100_000))


@pytest.fixture(scope="module")
def document(app: Any) -> Any:
    return schemathesis.openapi.from_asgi("/openapi.json", app)


OPERATIONS = [
    *("POST /v1/chat/completions", "POST /v1/completions", "POST /v1/embeddings"),
    *("GET /v1/models", "GET /v1/models/{model}", "GET /health", "GET /metrics"),
    *("POST /generate", "POST /tokenize", "POST /detokenize"),
]


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("label", OPERATIONS)
def test_what_the_document_says(document: Any, label: str, mode: Any) -> None:
    """Every status, type and body is documented, whatever is sent; what is not allowed is refused.

    What is allowed by its form may still be refused: an unknown model, an id beyond the vocabulary.
    """
    operation = document.find_operation_by_label(label)
    try:
        strategy = operation.as_strategy(generation_mode=mode)
    except Unsatisfiable:
        return

    @settings(
        max_examples=N_EXAMPLES,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(case=strategy)
    def ask(case: Any) -> None:
        case.call_and_validate(excluded_checks=[positive_data_acceptance])

    with contextlib.suppress(Unsatisfiable):  # nothing of a GET can be wrong
        ask()


def test_all_operations_are_asked(document: Any) -> None:
    assert {result.ok().label for result in document.get_all_operations()} == set(OPERATIONS)


def test_every_sampler_has_a_field() -> None:
    known = set(Samplers.model_fields)
    assert set(SamplingParams.__dataclass_fields__) - known == _OURS
    for request in (ChatRequest, CompletionRequest):
        assert set(request.model_fields) >= set(SamplingParams.__dataclass_fields__)


@pytest.mark.parametrize(
    ("request_model", "of_openai"),
    [
        (ChatRequest, openai.types.chat.completion_create_params.CompletionCreateParamsBase),
        (CompletionRequest, openai.types.completion_create_params.CompletionCreateParamsBase),
    ],
)
def test_every_field_of_openais_is_known(request_model: Any, of_openai: Any) -> None:
    """Honoured, refused by name, or said to change nothing; a new one of theirs fails here."""
    assert set(of_openai.__annotations__) <= set(request_model.model_fields)


def test_the_document_itself(app: Any, ask_of: Any) -> None:
    document = app.openapi()
    text = json.dumps(document)
    assert "HTTPValidationError" not in text
    assert '"422"' not in text
    paths = document["paths"]
    for path in ("/v1/models", "/v1/chat/completions", "/v1/completions", "/v1/embeddings"):
        assert path in paths
    for path in ("/tokenize", "/detokenize", "/generate", "/health", "/metrics"):
        assert path in paths
    assert "securitySchemes" not in document["components"]
    locked = ask_of(keys=("secret",)).get("/openapi.json").json()
    assert locked["components"]["securitySchemes"] == {"key": {"type": "http", "scheme": "bearer"}}
    assert "security" not in locked["paths"]["/health"]["get"]
    assert locked["paths"]["/v1/models"]["get"]["security"] == [{"key": []}]


def test_the_page(ask: Any) -> None:
    """Served with a policy that lets nothing in from elsewhere."""
    from m40llm.server.files import FILES

    if "index.html" not in FILES:
        assert ask.get("/").status_code == 404
        return
    page = ask.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["content-security-policy"].startswith("default-src 'self'")
    for name in FILES:
        file = ask.get(f"/{name}")
        assert file.status_code == 200
        assert file.headers["x-content-type-options"] == "nosniff"
        same = ask.get(f"/{name}", headers={"if-none-match": file.headers["etag"]})
        assert (same.status_code, same.content) == (304, b"")
