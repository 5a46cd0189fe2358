"""What may be asked of /v1/chat/completions."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from m40llm.server.errors import ApiError
from m40llm.server.fields import STRICT, Ignored, Int, OpenAIFields, Refused, need_llguidance
from m40llm.server.messages import Message

_TEMPLATE_OWN = {
    "messages",
    "add_generation_prompt",
    "tools",
    "self",
}  # which requests have fields for


class PlainText(BaseModel):
    model_config = STRICT

    type: Literal["text"]


class JsonObject(BaseModel):
    model_config = STRICT

    type: Literal["json_object"]


class NamedSchema(BaseModel):
    model_config = STRICT

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    description: Ignored = None
    strict: Annotated[
        bool | None, Field(description="The answer is held to the schema in any case.")
    ] = None


class JsonSchema(BaseModel):
    model_config = STRICT

    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[PlainText | JsonObject | JsonSchema, Field(discriminator="type")]


class ChatRequest(OpenAIFields):
    """OpenAI's fields; then those of `SamplingParams`, by their own names."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[Int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[Int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=128)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: Annotated[
        dict[str, Any] | None,
        Field(description="What else the model's chat template reads, such as enable_thinking."),
    ] = None

    metadata: Ignored = None
    store: Ignored = None
    service_tier: Ignored = None
    safety_identifier: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_retention: Ignored = None
    prompt_cache_options: Ignored = None
    prediction: Ignored = None
    modalities: list[Literal["text"]] | None = None
    audio: Refused = None
    functions: Refused = None
    function_call: Refused = None
    moderation: Refused = None
    reasoning_effort: Refused = None
    verbosity: Refused = None
    web_search_options: Refused = None

    @property
    def n_tokens(self) -> int | None:
        """Of an answer, at most."""
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            told = "max_tokens: expected none beside max_completion_tokens"
            raise ApiError(400, told, code="invalid_value", param="max_tokens")
        return self.max_tokens or self.max_completion_tokens

    def given(self) -> dict[str, Any]:
        """Fields of `SamplingParams`. ApiError for what does not go together."""
        found = super().given()
        if self.top_logprobs is not None and not self.logprobs:
            told = "top_logprobs: expected logprobs true beside it"
            raise ApiError(400, told, code="invalid_value", param="top_logprobs")
        if self.logprobs:
            found["logprobs"] = self.top_logprobs or 0
        if unknown := sorted(_TEMPLATE_OWN & (self.chat_template_kwargs or {}).keys()):
            told = f"chat_template_kwargs: expected no {unknown[0]}, which has a field of its own"
            raise ApiError(400, told, code="invalid_value", param="chat_template_kwargs")
        return found | self._format(found)

    def _format(self, found: dict[str, Any]) -> dict[str, Any]:
        asked = self.response_format
        if asked is None or isinstance(asked, PlainText):
            return {}
        need_llguidance("response_format")
        if "json_schema" in found:
            told = "json_schema: expected no response_format beside it"
            raise ApiError(400, told, code="invalid_value", param="json_schema")
        schema = asked.json_schema.schema_ if isinstance(asked, JsonSchema) else None
        return {"json_schema": {"type": "object"} if schema is None else schema}
