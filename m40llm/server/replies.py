"""Answers in OpenAI's form, as pydantic models: for the OpenAPI document, which tests check."""

from typing import Any, Literal

from pydantic import BaseModel


class ErrorOf(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    error: ErrorOf


class PromptDetails(BaseModel):
    cached_tokens: int


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None


class ChatLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    content: list[ChatLogprob]
    refusal: None


class CalledFunction(BaseModel):
    name: str
    arguments: str


class CalledTool(BaseModel):
    id: str
    type: Literal["function"]
    function: CalledFunction


class ChatMessage(BaseModel):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[CalledTool] | None = None


class ChatChoice(BaseModel):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatReply(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class TextLogprobsReply(BaseModel):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextChoice(BaseModel):
    index: int
    text: str
    logprobs: TextLogprobsReply | None
    finish_reason: Literal["stop", "length"]


class TextReply(BaseModel):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: Usage


class EmbeddingReply(BaseModel):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class EmbeddingsReply(BaseModel):
    object: Literal["list"]
    data: list[EmbeddingReply]
    model: str
    usage: EmbeddingUsage


class ModelReply(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelsReply(BaseModel):
    object: Literal["list"]
    data: list[ModelReply]


class HealthReply(BaseModel):
    status: Literal["ok"]
    model: str
    slots: int
    running: int
    waiting: int


class TokenizeReply(BaseModel):
    ids: list[int]
    pieces: list[str]
    n_tokens: int


class DetokenizeReply(BaseModel):
    text: str


class GenerateReply(BaseModel):
    output: str


_ABOUT = {
    400: "The request is refused: `param` says what of it",
    401: "No API key, or a wrong one",
    403: "The Host header has a name that is not the server's",
    404: "No such model",
    408: "The body did not come",
    413: "The body is too large",
    429: "The queue is full; Retry-After says when to come again",
    500: "The model or its device failed",
    501: "A package is not installed",
    503: "The server is shutting down",
    504: "The time limit has passed",
}


def errors(*without: int) -> dict[int | str, dict[str, Any]]:
    """The errors of an endpoint, for the OpenAPI document."""
    about = {status: text for status, text in _ABOUT.items() if status not in without}
    return {status: {"model": ErrorBody, "description": text} for status, text in about.items()}
