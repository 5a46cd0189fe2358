"""What the engine says of each token, and the time that a request took."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from m40llm.engine.sampling import log_softmax
from m40llm.engine.sampling_params import SamplingParams
from m40llm.errors import ModelFileError, RequestError

StopReason = Literal["stop", "length", "context", "cancelled"]


@dataclass(frozen=True)
class TokenLogprob:
    """What the unmodified model thought of one chosen token, and of the likeliest others."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # (token_id, logprob), likeliest first


@dataclass(frozen=True)
class Step:
    """One generated token; `stop_reason` is set on the last."""

    token: TokenLogprob
    stop_reason: StopReason | None = None


@dataclass
class Clock:
    """Seconds that the parts of one request took, and what speculation came to."""

    queue_s: float = 0.0  # before anything was computed of it
    prefill_s: float = 0.0
    decode_s: float = 0.0
    ttft_s: float = 0.0
    n_cached: int = 0  # tokens of the prompt that were in the cache already
    n_proposed: int = 0  # tokens that were proposed and checked
    n_accepted: int = 0  # those of them that are in the answer


def logprob_of(logits: NDArray[np.float32], params: SamplingParams, token_id: int) -> TokenLogprob:
    """Of a chosen token, and of as many others as were asked for; logits float32[vocab_size]."""
    logprobs = log_softmax(logits)
    top: tuple[tuple[int, float], ...] = ()
    if params.logprobs:
        order = np.argsort(-logprobs, kind="stable")[: params.logprobs]
        top = tuple((int(i), float(logprobs[i])) for i in order)
    return TokenLogprob(token_id, float(logprobs[token_id]), top)


def check_finite(logits: NDArray[np.float32], is_edited: bool = False) -> None:
    """ModelFileError for logits that nothing can be chosen from; RequestError where the caller has
    changed what they are computed from."""
    if not np.isfinite(logits).all():
        if is_edited:
            raise RequestError("edits: the logits are not finite numbers; an edit has made them so")
        raise ModelFileError(
            "the model's logits are not finite numbers: its weights are damaged or overflow"
        )
