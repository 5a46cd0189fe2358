"""Decoder: a device that makes tokens by itself, one after another, without the host in its loop.

A decoder has slots, one for each sequence that it decodes at a time. `begin` gives a slot its
work; `advance` sees to it that the device is at it; `answers` are the tokens that have come since.
Several forms of one step give the same tokens, bit for bit:

    eager       one launch an instruction
    graph       the same launches, recorded once
    persistent  one launch for the whole of a request
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from m40llm.device.ops import Buffer, RopeTable

Form = Literal["eager", "graph", "persistent"]
FORMS: Final[tuple[Form, ...]] = ("eager", "graph", "persistent")
STEPPED: Final[tuple[Form, ...]] = ("eager", "graph")  # a launch, or a replay, a step
Done = Literal["stop", "length", "context", "cancelled", "damaged"]


@dataclass(frozen=True)
class SlotRequest:
    """What a slot shall do. Settings of the sampler are those of SamplingParams.

    token_id, pos  the token that goes in next, and its position
    count          tokens to be made at most
    history        int32[vocab_size], see kernels/sampling.py; None where nothing is penalised
    is_constrained which tokens may come is said for each of them, by `Decoder.allow`
    """

    token_id: int
    pos: int
    count: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    history: NDArray[np.int32] | None = None
    stop_ids: tuple[int, ...] = ()
    is_constrained: bool = False


@dataclass(frozen=True)
class Answer:
    """One token. `done` is set on a slot's last; a cancelled or damaged one has no token.

    The logprob of a damaged one is no finite number where a logit was none; where it is, every
    token that may come was banned.
    """

    slot: int
    token_id: int
    logprob: float
    done: Done | None = None


@dataclass(frozen=True)
class ModelParts:
    """What a decode program needs of a model beside its instructions.

    weights   by the names in the program
    k, v      the KV cache
    ropes     of each layer; windows: of each layer, keys that a row sees, 0 for all
    scale     of attention's scores
    """

    weights: Mapping[str, Any]
    table: Any
    ropes: Sequence[RopeTable]
    windows: Sequence[int]
    k: Buffer
    v: Buffer
    n_heads: int
    n_embd: int
    n_ff: int
    rope_dim: int
    vocab_size: int
    norm_eps: float
    scale: float


@dataclass(frozen=True)
class OpsStep:
    """A step of a model's own ops, for a decoder that has them recorded.

    run          run(token_ids, seq, pos) enqueues it: int32[n_seqs] on the device, a row a slot. A
                 row at position -1 is idle: it appends nothing, and its logits are nobody's
    logits       float32[n_seqs, vocab_size], where it puts them
    max_seq_len  positions that a sequence has
    no_program   why no decode program makes it, in one launch
    """

    run: Callable[[Buffer, Buffer, Buffer], None]
    logits: Buffer
    max_seq_len: int
    no_program: str


class Decoder(Protocol):
    """See above. After an error, `recover` comes before anything else.

    forms  those that suit the card; others may work, but are for who asks for them
    """

    forms: tuple[Form, ...]
    max_bias: int
    max_stop_ids: int

    @property
    def device(self) -> str:
        """The card, the architecture of its code and its driver, in words."""
        ...

    def why_not(self, form: Form) -> str:
        """Why it does not work in this form; empty where it does."""
        ...

    def begin(self, slot: int, request: SlotRequest) -> None:
        """The slot must be done with what it had before. Waits for the token that others have in
        hand; they go on when `advance` is called."""
        ...

    def allow(self, slot: int, mask: NDArray[np.uint32]) -> None:
        """Which tokens may be the next one of a slot that is constrained: uint32[ceil(vocab_size
        / 32)], bit i % 32 of word i // 32 for token i. To be called after `begin`, and after each
        answer but the last: meanwhile the device computes the logits. A step whose mask does not
        come in time makes no token, and is made again."""
        ...

    def advance(self, form: Form, *, one_step: bool = False) -> None:
        """Enqueues what is to be done, unless enough is under way; returns at once on a card.
        `answers` is to be called as often: the eager and graph forms do not stop for its sake.
        With `one_step` a launch that is made now ends after one token, whether others wait."""
        ...

    def make_way(self) -> None:
        """What is enqueued next on the device, a prefill, say, does not wait for the answers of
        the slots that are at work: a launch that goes on ends after the token in hand, or the
        next. `advance` goes on with them."""
        ...

    def answers(self) -> list[Answer]:
        """Those that have come since the last call, in order."""
        ...

    def cancel(self, *slots: int) -> None:
        """Ends their work, and waits until the device is idle; their answers are dropped."""
        ...

    def recover(self) -> None:
        """All slots idle, whatever a failed launch has left."""
        ...
