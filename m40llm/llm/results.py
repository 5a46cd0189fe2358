"""What a request returns."""

from dataclasses import dataclass

from m40llm.engine.step import StopReason, TokenLogprob

__all__ = ["Completion", "StopReason", "StreamItem", "Timings", "TokenLogprob", "ToolCall"]


@dataclass(frozen=True)
class Timings:
    """Where the time of a request went; seconds."""

    prompt_tokens: int
    generated_tokens: int
    load_s: float  # of the model, once
    prefill_s: float
    decode_s: float
    ttft_s: float  # time to first token, from the request on
    tokens_per_s: float  # of decode; 0 where there was none
    proposed_tokens: int = 0  # by speculation (docs/speculative.md)
    accepted_tokens: int = 0  # those of them that are in the answer
    cached_tokens: int = 0  # of the prompt, which were in the cache already
    queue_s: float = 0.0  # before anything was computed (llm/service.py)


@dataclass(frozen=True)
class StreamItem:
    """One generated token, as it comes.

    text is what this token made certain: "" while a character is unfinished or a stop string may
    still be coming, and for stop tokens. top: the likeliest tokens of its position, (token_id,
    logprob), as many as SamplingParams.logprobs asked for.
    """

    token_id: int
    text: str
    logprob: float  # natural log, under the unmodified model
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class ToolCall:
    """What the model asks the caller to do. arguments: JSON text, an object's unless the answer was
    cut short."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Completion:
    """The answer to one prompt.

    text         without special tokens and without the stop string. Of an answer that was cancelled
                 all that its tokens say; its end may be in no StreamItem, where it could still
                 have become a stop string
    ids          every generated token, the stop token included where one ended the answer
    prompt_ids   what the model was given
    stop_reason  "stop" (a stop token, id or string), "length" (max_tokens), "context" (the
                 context is full) or "cancelled"
    logprobs     one entry a token of ids, if SamplingParams.logprobs asked for it
    tool_calls   of a chat with tools: those that the answer has beside its text
    """

    text: str
    ids: list[int]
    prompt_ids: list[int]
    stop_reason: StopReason
    logprobs: list[TokenLogprob] | None
    timings: Timings
    tool_calls: tuple[ToolCall, ...] = ()
