"""/v1/completions: texts that are continued."""

import time
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from m40llm.engine.sampling_params import SamplingParams
from m40llm.llm.results import Completion, StreamItem
from m40llm.server.answers import Answers, Ask, while_there
from m40llm.server.asking import (
    FINISH,
    asks,
    ends_of,
    head,
    json_reply,
    log_answers,
    prompt_ids,
    under_way,
    usage,
)
from m40llm.server.errors import ApiError
from m40llm.server.fields import Int, OpenAIFields, Refused, TokenId, sampling_params
from m40llm.server.logprobs import TextLogprobs
from m40llm.server.models import resolved
from m40llm.server.replies import TextReply, errors
from m40llm.server.serving import Serving, record_of, serving_of
from m40llm.server.streams import AS_EVENTS, DONE, event, event_stream
from m40llm.text import Tokenizer

router = APIRouter()
DEFAULT_TOKENS = 16  # OpenAI's

Ids = Annotated[list[TokenId], Field(min_length=1)]
Prompt = str | Ids | Annotated[list[str] | list[Ids], Field(min_length=1)]


class CompletionRequest(OpenAIFields):
    """OpenAI's fields; then those of `SamplingParams`, by their own names."""

    prompt: Prompt
    logprobs: Annotated[Int, Field(ge=0, le=5)] | None = None
    echo: bool | None = None
    best_of: Annotated[Int, Field(ge=1, le=20)] | None = None
    suffix: Refused = None

    def check(self) -> None:
        """ApiError for what does not go together, or is not supported."""
        if self.echo and self.logprobs is not None:
            told = "echo: the prompt's own log-probabilities are not supported; leave logprobs out"
            raise ApiError(400, told, code="unsupported_parameter", param="echo")
        if self.best_of is not None and self.best_of != (self.n or 1):
            told = f"best_of: expected n ({self.n or 1}): no answer is thrown away here"
            raise ApiError(400, told, code="unsupported_parameter", param="best_of")

    def prompts(self) -> list[str | list[int]]:
        """Each text, or list of ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)

    def given(self) -> dict[str, Any]:
        found = super().given()
        return found if self.logprobs is None else found | {"logprobs": self.logprobs}


@dataclass(frozen=True)
class _Wanted:
    """A request as it was understood."""

    head: dict[str, Any]
    params: SamplingParams
    ends: frozenset[int]
    n: int  # answers to each prompt
    n_answers: int
    has_usage_chunk: bool
    echoes: list[str]  # the prompts' texts, where they are wanted back

    def echo(self, index: int) -> str:
        return self.echoes[index // self.n] if self.echoes else ""


@router.post("/v1/completions", response_model=TextReply, responses={200: AS_EVENTS, **errors()})
async def complete(request: Request, asked: CompletionRequest) -> Any:
    """What the model says behind a text, which it gets as it stands, without a chat template."""
    serving = serving_of(request)
    asked.check()
    model, lora = resolved(request, asked.model)

    def make() -> tuple[list[Ask], _Wanted]:
        wanted = _wanted(serving, asked, model)
        if serving.settings.log_prompts:
            record_of(request).texts["prompt"] = asked.prompts()
        ids = prompt_ids(serving, asked.prompts(), "prompt")
        return asks(ids, wanted.params, wanted.n), wanted

    coming = under_way(request, lora, make, {"text": "prompt"})
    if asked.stream:
        return event_stream(request, _events(request, *await coming))
    return await while_there(request, _whole(request, coming))


def _wanted(serving: Serving, asked: CompletionRequest, model: str) -> _Wanted:
    most, n, prompts = serving.settings.max_tokens, asked.n or 1, asked.prompts()
    default = DEFAULT_TOKENS if most is None else min(DEFAULT_TOKENS, most)
    params = sampling_params(asked.given(), asked.max_tokens or default, most)
    decode = serving.tokenizer.decode
    texts = [one if isinstance(one, str) else decode(one) for one in prompts if asked.echo]
    return _Wanted(
        head=head("text_completion", "cmpl", model, int(time.time())),
        params=params,
        ends=ends_of(params, serving.tokenizer),
        n=n,
        n_answers=n * len(prompts),
        has_usage_chunk=asked.has_usage_chunk,
        echoes=texts,
    )


async def _whole(request: Request, coming: Awaitable[tuple[Answers, _Wanted]]) -> Response:
    answers, wanted = await coming
    done: dict[int, Completion] = {}
    async for batch in answers:
        done |= {index: one for index, one in batch if isinstance(one, Completion)}
    completions = [done[index] for index in range(wanted.n_answers)]
    log_answers(request, completions)
    tokenizer = serving_of(request).tokenizer
    choices = [
        {
            "index": index,
            "text": wanted.echo(index) + one.text,
            "logprobs": _logprobs(tokenizer, one, wanted),
            "finish_reason": FINISH[one.stop_reason],
        }
        for index, one in enumerate(completions)
    ]
    return json_reply(wanted.head | {"choices": choices, "usage": usage(completions, wanted.n)})


def _logprobs(tokenizer: Tokenizer, one: Completion, wanted: _Wanted) -> Any:
    tokens = one.logprobs
    if tokens is None:
        return None
    if one.stop_reason == "stop" and tokens and tokens[-1].token_id in wanted.ends:
        tokens = tokens[:-1]
    return TextLogprobs(tokenizer).of(tokens)


async def _events(request: Request, answers: Answers, wanted: _Wanted) -> AsyncIterator[bytes]:
    more = {"usage": None} if wanted.has_usage_chunk else {}
    tokenizer = serving_of(request).tokenizer
    logprobs = [TextLogprobs(tokenizer) for _ in range(wanted.n_answers)]

    def chunk(index: int, text: str, **of: Any) -> bytes:
        choice = {"index": index, "text": text, "logprobs": None, "finish_reason": None} | of
        return event({**wanted.head, "choices": [choice], **more})

    if wanted.echoes:
        yield b"".join(chunk(index, wanted.echo(index)) for index in range(wanted.n_answers))
    done: dict[int, Completion] = {}
    async for batch in answers:
        chunks = []
        for index, one in batch:
            if isinstance(one, Completion):
                done[index] = one
                chunks.append(chunk(index, "", finish_reason=FINISH[one.stop_reason]))
            elif wanted.params.logprobs is not None and not _is_end(one, wanted):
                chunks.append(chunk(index, one.text, logprobs=logprobs[index].of([one])))
            elif one.text:
                chunks.append(chunk(index, one.text))
        if chunks:
            yield b"".join(chunks)
    completions = [done[index] for index in range(wanted.n_answers)]
    log_answers(request, completions)
    if wanted.has_usage_chunk:
        yield event({**wanted.head, "choices": [], "usage": usage(completions, wanted.n)})
    yield DONE


def _is_end(item: StreamItem, wanted: _Wanted) -> bool:
    return item.token_id in wanted.ends and not item.text
