"""Decode without the host in the loop: a request handed to the device's decoder, its answers back.

The host's own loop (engine.py) computes logits on the device and chooses on the host, a token at a
time. Here choice, stop check and next embedding happen on the device; the host only reads what has
been made, and says which tokens may come next where an answer is constrained, while the device
computes their logits. What the device's sampler lacks, the host's loop serves: `why_host` says
what.
"""

import math
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from m40llm.device.decoder import FORMS, Answer, Decoder, Form, SlotRequest
from m40llm.engine.constraint import Constraint
from m40llm.engine.request import Request
from m40llm.engine.sampling_params import SamplingParams
from m40llm.engine.step import Step, StopReason, TokenLogprob
from m40llm.errors import ModelFileError, RequestError

DecodeForm = Literal["host", "eager", "graph", "persistent"]
DECODE_FORMS: Final[tuple[DecodeForm, ...]] = ("host", *FORMS)
DecodeChoice = Literal["auto", "host", "eager", "graph", "persistent"]
DECODE_CHOICES: Final[tuple[DecodeChoice, ...]] = ("auto", *DECODE_FORMS)
# Fields that only the host's chain knows; at their defaults they ask for nothing.
_OF_THE_HOST: Final = (
    "typical_p",
    "top_n_sigma",
    "xtc_probability",
    "dynatemp_range",
    "dry_multiplier",
    "mirostat",
    "samplers",
)
_DEFAULTS: Final = SamplingParams()
_REASONS: Final[dict[str, StopReason]] = {"stop": "stop", "length": "length", "context": "context"}
_POLL_S: Final = 20e-6
_NO_END: Final = (1 << 31) - 1  # tokens, where only the context ends an answer


def checked_choice(name: object) -> DecodeChoice:
    """RequestError for what is none."""
    for choice in DECODE_CHOICES:
        if choice == name:
            return choice
    raise RequestError(f"decode: expected {', '.join(DECODE_CHOICES)}, got {name!r}")


def no_form(form: str, device: str, reason: str, others: Sequence[str] = ()) -> RequestError:
    """Where it was asked for; others beside "host" would do."""
    expected = " or ".join(repr(name) for name in ("host", *others))
    return RequestError(f"decode: expected {expected} on device {device!r}, got {form!r}: {reason}")


def why_host(params: SamplingParams, stop_ids: Collection[int], decoder: Decoder) -> str:
    """Why this request needs the host's loop; empty where the device serves it."""
    if params.logprobs:
        return "logprobs of other tokens than the chosen one"
    for field in _OF_THE_HOST:
        if getattr(params, field) != getattr(_DEFAULTS, field):
            return field
    if len(params.logit_bias) > decoder.max_bias:
        return f"logit_bias of more than {decoder.max_bias} tokens"
    if len(stop_ids) > decoder.max_stop_ids:
        return f"more than {decoder.max_stop_ids} stop tokens"
    return ""


def slot_request(request: Request, vocab_size: int) -> SlotRequest:
    """The rest of a request whose first tokens the host has chosen."""
    params, ids = request.params, request.ids
    n_left = _NO_END if params.max_tokens is None else params.max_tokens - len(ids)
    return SlotRequest(
        token_id=ids[-1],
        pos=request.last_pos,
        count=min(n_left, _NO_END),
        temperature=params.temperature,
        top_k=min(params.top_k, vocab_size),
        top_p=params.top_p,
        min_p=params.min_p,
        repetition_penalty=params.repetition_penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        seed=request.seed,
        logit_bias=params.logit_bias,
        history=_history(request.prompt, ids, vocab_size),
        stop_ids=tuple(sorted(request.stop_ids)),
    )


def _history(prompt: Sequence[int], ids: Sequence[int], vocab_size: int) -> NDArray[np.int32]:
    from m40llm.kernels.sampling import IN_ANSWER, IN_PROMPT  # loads CUDA: not for the host's loop

    history = np.zeros(vocab_size, np.int32)
    history[np.unique(np.asarray(prompt, np.int64))] = IN_PROMPT
    np.add.at(history, np.asarray(ids, np.int64), IN_ANSWER)
    return history


def decode(
    decoder: Decoder,
    form: Form,
    request: SlotRequest,
    slot: int = 0,
    constraint: Constraint | None = None,
) -> Iterator[Answer]:
    """The answers of one slot, as they come. Ended early, the device is idle when this returns.

    constraint  has been told of the tokens up to `request`, and is told of those that follow
    """
    begin(decoder, request, slot, constraint)
    is_done = False
    try:
        while not is_done:
            decoder.advance(form)
            answers = decoder.answers()
            for answer in answers:
                heed(decoder, answer, constraint)  # before anybody else: the device waits
                is_done = answer.done is not None
                yield answer
            if not answers:
                time.sleep(_POLL_S)
    except (GeneratorExit, KeyboardInterrupt, RequestError):  # else it would go on, unheard
        decoder.cancel(slot)
        raise


def begin(decoder: Decoder, request: SlotRequest, slot: int, constraint: Constraint | None) -> None:
    """Gives a slot its work, and the first mask of what is constrained."""
    first_mask = constraint.mask() if constraint else None
    decoder.begin(slot, replace(request, is_constrained=first_mask is not None))
    if first_mask is not None:
        decoder.allow(slot, first_mask)


def heed(decoder: Decoder, answer: Answer, constraint: Constraint | None) -> None:
    """Says what may come behind an answer. Raises what was wrong with a damaged one."""
    if answer.done == "damaged":
        raise _damaged(answer, constraint is not None)
    if constraint and answer.done is None:
        constraint.heed(answer.token_id)
        decoder.allow(answer.slot, constraint.mask())


def step_of(answer: Answer) -> Step:
    """A device's answer as the engine tells it."""
    token = TokenLogprob(answer.token_id, answer.logprob)
    return Step(token, None if answer.done is None else _REASONS[answer.done])


def _damaged(answer: Answer, is_constrained: bool) -> Exception:
    """No token could be chosen."""
    if math.isfinite(answer.logprob):
        which = "token that may come next" if is_constrained else "token"
        return RequestError(f"logit_bias: every {which} is banned")
    return ModelFileError(
        "the model's logits are not finite numbers: its weights are damaged or overflow"
    )
