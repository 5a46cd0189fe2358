"""/v1/embeddings: texts as vectors."""

import asyncio
import base64
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from m40llm.llm.embed import Pooling
from m40llm.server.answers import Answers, while_there
from m40llm.server.asking import json_reply, prompt_ids, told_as
from m40llm.server.errors import ApiError
from m40llm.server.fields import STRICT, Ignored, Int, Text, TokenId
from m40llm.server.models import resolved
from m40llm.server.replies import EmbeddingsReply, errors
from m40llm.server.serving import Serving, record_of, serving_of

router = APIRouter()
MAX_INPUTS = 2048  # OpenAI's

Ids = Annotated[list[TokenId], Field(min_length=1)]
Many = Annotated[list[Text] | list[Ids], Field(min_length=1, max_length=MAX_INPUTS)]


class EmbeddingRequest(BaseModel):
    """OpenAI's fields, and how the vectors are made (docs/cli.md, embed)."""

    model_config = STRICT

    model: str
    input: Text | Ids | Many
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[Int, Field(ge=1)] | None = None
    user: Ignored = None
    pooling: Pooling | None = None
    normalise: bool | None = None

    def texts(self) -> list[str | list[int]]:
        """Each text, or list of ids."""
        if isinstance(self.input, str):
            return [self.input]
        if isinstance(self.input[0], int):
            return [self.input]
        return list(self.input)


@router.post("/v1/embeddings", response_model=EmbeddingsReply, responses=errors(501))
async def embeddings(request: Request, asked: EmbeddingRequest) -> Any:
    """A vector of each text: the model's hidden states, pooled."""
    serving = serving_of(request)
    model, lora = resolved(request, asked.model)
    if lora is not None:
        told = f"model: vectors are made without adapters; ask {serving.settings.names[0]!r}"
        raise ApiError(400, told, code="unsupported_parameter", param="model")
    n_embd = serving.llm.hparams.n_embd
    if asked.dimensions not in (None, n_embd):
        told = f"dimensions: the model's vectors have {n_embd}, {asked.dimensions} were asked for"
        raise ApiError(400, told, code="unsupported_parameter", param="dimensions")
    return await while_there(request, _whole(request, serving, asked, model))


async def _whole(
    request: Request, serving: Serving, asked: EmbeddingRequest, model: str
) -> Response:
    answers = Answers(request)

    def submit() -> None:
        texts = asked.texts()
        if serving.settings.log_prompts:
            record_of(request).texts["prompt"] = texts
        with told_as({"text": "input"}):
            ids = prompt_ids(serving, texts, "input")
            answers.embed(ids, asked.pooling or "mean", asked.normalise is not False)

    await asyncio.to_thread(submit)
    vectors: NDArray[np.float32] | None = None
    async for batch in answers:
        vectors = batch[-1][1]
    assert vectors is not None
    n_tokens = record_of(request).prompt_tokens
    return json_reply(
        {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": _written(asked, vector)}
                for index, vector in enumerate(vectors)
            ],
            "model": model,
            "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
        }
    )


def _written(asked: EmbeddingRequest, vector: NDArray[np.float32]) -> Any:
    """base64: of float32, little endian, as OpenAI's clients read it."""
    if asked.encoding_format != "base64":
        return [float(number) for number in vector]
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
