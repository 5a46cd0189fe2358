"""/v1/chat/completions: answers to a conversation."""

import time
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from m40llm.engine.sampling_params import SamplingParams
from m40llm.llm.results import Completion, StreamItem
from m40llm.server.answers import Answers, Ask, while_there
from m40llm.server.asking import (
    asks,
    check_length,
    checked_prompt,
    ends_of,
    head,
    json_reply,
    log_answers,
    under_way,
    usage,
)
from m40llm.server.chat_schema import ChatRequest
from m40llm.server.fields import sampling_params
from m40llm.server.messages import for_template, texts_of
from m40llm.server.models import resolved
from m40llm.server.replies import ChatReply, errors
from m40llm.server.said import Said
from m40llm.server.serving import Serving, record_of, serving_of
from m40llm.server.streams import AS_EVENTS, DONE, event, event_stream
from m40llm.server.tool_use import ToolUse, tool_use

router = APIRouter()


@dataclass(frozen=True)
class _Wanted:
    """A request as it was understood."""

    head: dict[str, Any]
    tools: ToolUse
    params: SamplingParams
    ends: frozenset[int]
    n: int
    has_usage_chunk: bool

    def said(self, serving: Serving) -> list[Said]:
        """One for each answer."""
        has_logprobs = self.params.logprobs is not None
        return [
            Said(serving.tokenizer, self.tools.parser(), self.ends, has_logprobs)
            for _ in range(self.n)
        ]


@router.post(
    "/v1/chat/completions", response_model=ChatReply, responses={200: AS_EVENTS, **errors()}
)
async def chat(request: Request, asked: ChatRequest) -> Any:
    """The model's answer to messages, in the format of its chat template."""
    serving = serving_of(request)
    model, lora = resolved(request, asked.model)

    def make() -> tuple[list[Ask], _Wanted]:
        wanted = _wanted(serving, asked, model)
        variables = wanted.tools.variables(for_template(asked.messages))
        if serving.settings.log_prompts:
            record_of(request).texts["prompt"] = variables["messages"]
        check_length(serving, texts_of(variables["messages"]), "messages")
        ids = serving.tokenizer.encode_chat(**variables, **asked.chat_template_kwargs or {})
        checked = checked_prompt(serving, ids, "messages")
        return asks([checked], wanted.params, wanted.n), wanted

    coming = under_way(request, lora, make, _names(asked))
    if asked.stream:
        return event_stream(request, _events(request, *await coming))
    return await while_there(request, _whole(request, coming))


def _names(asked: ChatRequest) -> dict[str, str]:
    """Of fields that the request has in another form."""
    names = {"text": "messages"}
    if asked.response_format is not None:
        names["json_schema"] = "response_format"
    if asked.tools and asked.lark is None:
        names["lark"] = "tools"
    return names


def _wanted(serving: Serving, asked: ChatRequest, model: str) -> _Wanted:
    fields, kind = asked.given(), "chat.completion.chunk" if asked.stream else "chat.completion"
    tools = tool_use(serving, asked, fields)
    most = serving.settings.max_tokens
    params = sampling_params(fields | tools.fields, asked.n_tokens, most)
    return _Wanted(
        head=head(kind, "chatcmpl", model, int(time.time())),
        tools=tools,
        params=params,
        ends=ends_of(params, serving.tokenizer),
        n=asked.n or 1,
        has_usage_chunk=asked.has_usage_chunk,
    )


async def _whole(request: Request, coming: Awaitable[tuple[Answers, _Wanted]]) -> Response:
    answers, wanted = await coming
    said = wanted.said(serving_of(request))
    done: dict[int, Completion] = {}
    async for batch in answers:
        for index, one in batch:
            if isinstance(one, StreamItem):
                said[index].push(one)
            else:
                done[index] = one
                said[index].finish(one)
    choices = [one.choice(index) for index, one in enumerate(said)]
    completions = [done[index] for index in range(wanted.n)]
    log_answers(request, completions)
    return json_reply(wanted.head | {"choices": choices, "usage": usage(completions, wanted.n)})


async def _events(request: Request, answers: Answers, wanted: _Wanted) -> AsyncIterator[bytes]:
    more = {"usage": None} if wanted.has_usage_chunk else {}
    said = wanted.said(serving_of(request))

    def chunk(index: int, delta: dict[str, Any], **of: Any) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None} | of
        return event({**wanted.head, "choices": [choice], **more})

    role = {"role": "assistant", "content": ""}
    yield b"".join(chunk(index, role) for index in range(wanted.n))
    done: dict[int, Completion] = {}
    async for batch in answers:
        chunks = []
        for index, one in batch:
            if isinstance(one, StreamItem):
                chunks += [chunk(index, delta, **of) for delta, of in said[index].push(one)]
                continue
            done[index] = one
            chunks += [chunk(index, delta, **of) for delta, of in said[index].finish(one)]
            chunks.append(chunk(index, {}, finish_reason=said[index].finish_reason))
        if chunks:
            yield b"".join(chunks)
    completions = [done[index] for index in range(wanted.n)]
    log_answers(request, completions)
    if wanted.has_usage_chunk:
        yield event({**wanted.head, "choices": [], "usage": usage(completions, wanted.n)})
    yield DONE
