"""/tokenize and /detokenize, and /generate as the Rust m40-llm has it."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field

from m40llm.llm.results import Completion, StreamItem
from m40llm.server.answers import Answers, Ask, while_there
from m40llm.server.asking import check_length, checked_prompt, json_reply, log_answers, under_way
from m40llm.server.errors import ApiError
from m40llm.server.fields import STRICT, Int, Samplers, TokenId, sampling_params
from m40llm.server.replies import DetokenizeReply, GenerateReply, TokenizeReply, errors
from m40llm.server.serving import record_of, serving_of
from m40llm.server.streams import line_stream
from m40llm.text import Tokenizer

router = APIRouter()
_LLAMA3: Final = "<|start_header_id|>"
_LLAMA3_CHAT: Final = (
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)


class TokenizeRequest(BaseModel):
    model_config = STRICT

    text: str
    add_bos: Annotated[bool | None, Field(description="null: as the file says")] = None
    parse_special: bool = False


class DetokenizeRequest(BaseModel):
    model_config = STRICT

    ids: list[TokenId]
    skip_special: bool = False


class GenerateRequest(Samplers):
    """Rust's fields, and those of `SamplingParams`, with its defaults."""

    prompt: str
    max_tokens: Annotated[Int, Field(ge=1)] | None = None
    stream: bool | None = None
    prompt_format: Annotated[
        Literal["auto", "raw", "llama3-chat"] | None,
        Field(description="auto: llama3-chat where the model's chat template is Llama 3's"),
    ] = None


@router.post("/tokenize", response_model=TokenizeReply, responses=errors(404, 429, 501, 504))
async def tokenize(request: Request, asked: TokenizeRequest) -> Any:
    """The ids of a text, and the text of each; bytes that are no UTF-8 alone as U+FFFD."""
    tokenizer = serving_of(request).tokenizer

    def work() -> dict[str, Any]:
        check_length(serving_of(request), [asked.text], "text")
        ids = tokenizer.encode(asked.text, asked.add_bos, asked.parse_special)
        pieces = [tokenizer.token_bytes(token_id).decode("utf-8", "replace") for token_id in ids]
        return {"ids": ids, "pieces": pieces, "n_tokens": len(ids)}

    return json_reply(await asyncio.to_thread(work))


@router.post("/detokenize", response_model=DetokenizeReply, responses=errors(404, 429, 501, 504))
async def detokenize(request: Request, asked: DetokenizeRequest) -> Any:
    """The text of ids."""
    decode = serving_of(request).tokenizer.decode
    return json_reply({"text": await asyncio.to_thread(decode, asked.ids, asked.skip_special)})


@router.post(
    "/generate",
    response_model=GenerateReply,
    responses={
        200: {"content": {"application/jsonl": {"schema": {"type": "string"}}}},
        **errors(404),
    },
)
async def generate(request: Request, asked: GenerateRequest) -> Any:
    """{"output"} of a prompt; as a stream, lines of {"output", "done"} with all that there is."""
    serving = serving_of(request)
    params = sampling_params(asked.given(), asked.max_tokens, serving.settings.max_tokens)

    def make() -> tuple[list[Ask], None]:
        check_length(serving, [asked.prompt], "prompt")
        ids = _ids(serving.tokenizer, asked.prompt, asked.prompt_format or "auto")
        if serving.settings.log_prompts:
            record_of(request).texts["prompt"] = asked.prompt
        return [Ask(checked_prompt(serving, ids, "prompt"), params)], None

    coming = under_way(request, None, make, {"text": "prompt"})
    if asked.stream:
        answers, _ = await coming
        return line_stream(request, _lines(answers))
    return await while_there(request, _whole(request, coming))


async def _whole(request: Request, coming: Awaitable[tuple[Answers, None]]) -> Response:
    answers, _ = await coming
    completion: Completion | None = None
    async for batch in answers:
        completion = batch[-1][1]
    assert completion is not None
    log_answers(request, [completion])
    return json_reply({"output": completion.text})


async def _lines(answers: Answers) -> AsyncIterator[bytes]:
    """One for each batch of tokens: a client that is behind gets fewer."""
    output, done = "", False
    async for batch in answers:
        for _, one in batch:
            if isinstance(one, StreamItem):
                output += one.text
            else:
                done = True
        line = json.dumps({"output": output, "done": done})
        yield line.encode("ascii") + b"\n"


def _ids(tokenizer: Tokenizer, prompt: str, how: str) -> list[int]:
    is_llama3 = _LLAMA3 in (tokenizer.chat_template or "")
    if how == "auto":
        how = "llama3-chat" if is_llama3 and _LLAMA3 not in prompt else "raw"
    if how == "raw":
        return tokenizer.encode(prompt)
    if not is_llama3:
        told = "prompt_format: expected auto or raw: the model's chat template is not Llama 3's"
        raise ApiError(400, told, code="invalid_value", param="prompt_format")
    text = _LLAMA3_CHAT.format(prompt.strip())
    return tokenizer.encode(text, add_bos=False, parse_special=True)
