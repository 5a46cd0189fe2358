"""From a checked request to answers under way; and what all kinds of answers say of themselves."""

import asyncio
import json
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final, TypeVar

from fastapi import Request
from fastapi.responses import Response

from m40llm import __version__
from m40llm.engine.sampling_params import SamplingParams
from m40llm.errors import RequestError
from m40llm.llm.results import Completion
from m40llm.server.answers import Answers, Ask
from m40llm.server.errors import ApiError
from m40llm.server.serving import Serving, record_of, serving_of
from m40llm.text import Tokenizer

W = TypeVar("W")
FINGERPRINT: Final = f"m40llm-{__version__}"
FINISH: Final = {"stop": "stop", "length": "length", "context": "length"}


async def under_way(
    request: Request,
    lora: str | None,
    make: Callable[[], tuple[Sequence[Ask], W]],
    names: Mapping[str, str],
) -> tuple[Answers, W]:
    """Answers to what `make` asks, and what else it gives.

    It is called in a thread: templates, tokenizers and grammars may take their time. `names`: see
    told_as.
    """
    answers = Answers(request, lora)

    def submit() -> W:
        with told_as(names):
            asked, wanted = make()
            answers.submit(asked)
        return wanted

    return answers, await asyncio.to_thread(submit)


@contextmanager
def told_as(names: Mapping[str, str]) -> Iterator[None]:
    """What is wrong with a text, or a field of `SamplingParams`, is told of the request's field."""
    try:
        yield
    except RequestError as error:
        name, colon, rest = str(error).partition(":")
        field = names.get(name.partition(" ")[0], name)  # of many, they are "text 1", "text 2", ...
        raise RequestError(f"{field}{colon}{rest}") from None


def check_length(serving: Serving, texts: Iterable[str], param: str) -> None:
    """ApiError for texts that are too long whatever their tokens: to find those takes seconds, in
    which nothing else runs."""
    most = serving.llm.max_seq_len * serving.cached(_longest_token)
    n_bytes = sum(len(text.encode("utf-8", "replace")) for text in texts)
    if n_bytes > most:
        told = f"{param}: {n_bytes:,} bytes; no more than {most:,} can be the tokens of a context"
        raise ApiError(400, told, code="context_length_exceeded", param=param)


def _longest_token(tokenizer: Tokenizer) -> int:
    """In bytes; spm's marks of spaces count as they stand."""
    ids = range(tokenizer.vocab_size)
    return max(4, *(len(tokenizer.token_bytes(token_id)) for token_id in ids))


def checked_prompt(serving: Serving, ids: list[int], param: str) -> list[int]:
    """ApiError for one that is longer than the server or the model takes."""
    most, context = serving.settings.max_prompt, serving.llm.max_seq_len
    if len(ids) > context:
        told = f"{param}: {len(ids)} tokens; the model's context holds {context}"
        raise ApiError(400, told, code="context_length_exceeded", param=param)
    if most is not None and len(ids) > most:
        told = f"{param}: {len(ids)} tokens; this server takes at most {most}"
        raise ApiError(400, told, code="prompt_too_long", param=param)
    if not ids:
        told = f"{param}: empty; a model needs at least one token to go on from"
        raise ApiError(400, told, code="invalid_value", param=param)
    return ids


def prompt_ids(serving: Serving, prompts: Sequence[str | list[int]], param: str) -> list[list[int]]:
    """Of texts, or ids as they are; all of them known to be short enough before any is encoded."""
    for one in prompts:
        check_length(serving, [one] if isinstance(one, str) else [], param)
    encode = serving.tokenizer.encode
    ids = [encode(one) if isinstance(one, str) else one for one in prompts]
    return [checked_prompt(serving, one, param) for one in ids]


def log_answers(request: Request, completions: Iterable[Completion]) -> None:
    """If prompts are logged."""
    if serving_of(request).settings.log_prompts:
        record_of(request).texts["answers"] = [one.text for one in completions]


def asks(prompts: Iterable[Sequence[int]], params: SamplingParams, n: int) -> list[Ask]:
    """n of each prompt: with seeds that follow one another, so that each answer is another one."""
    seeds = [None] * n if params.seed is None else [(params.seed + k) % 2**63 for k in range(n)]
    of_each = [replace(params, seed=seed) for seed in seeds]
    return [Ask(ids, one, k == 0) for ids in prompts for k, one in enumerate(of_each)]


def ends_of(params: SamplingParams, tokenizer: Tokenizer) -> frozenset[int]:
    """Ids of tokens that end an answer, and are no part of it."""
    own = () if params.ignore_eos else tokenizer.stop_ids
    return frozenset((*own, *params.stop_ids))


def head(kind: str, prefix: str, model: str, created: int) -> dict[str, Any]:
    """What an answer, and each piece of it, begins with."""
    return {
        "id": f"{prefix}-{secrets.token_hex(12)}",
        "object": kind,
        "created": created,
        "model": model,
        "system_fingerprint": FINGERPRINT,
    }


def usage(completions: Sequence[Completion], n: int) -> dict[str, Any]:
    """Of all answers together; a prompt counts once, however many answers it gets."""
    prompts = sum(c.timings.prompt_tokens for c in completions[::n])
    made = sum(c.timings.generated_tokens for c in completions)
    cached = sum(c.timings.cached_tokens for c in completions[::n])
    return {
        "prompt_tokens": prompts,
        "completion_tokens": made,
        "total_tokens": prompts + made,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def json_reply(body: dict[str, Any]) -> Response:
    """In ASCII, which every client reads alike."""
    return Response(json.dumps(body), media_type="application/json")
