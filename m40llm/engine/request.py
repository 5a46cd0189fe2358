"""One request under way."""

import time
from dataclasses import dataclass, field

from m40llm.engine.constraint import Constraint
from m40llm.engine.sampling import Chain, Logits
from m40llm.engine.sampling_params import SamplingParams
from m40llm.engine.step import Clock, Step, StopReason, logprob_of


@dataclass
class Request:
    """What was asked, and the answer so far."""

    prompt: list[int]
    params: SamplingParams
    seed: int
    clock: Clock
    begin_s: float  # of time.perf_counter
    stop_ids: frozenset[int]  # the model's, which params may ignore, and those of params
    max_seq_len: int
    constraint: Constraint | None = None
    ids: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.chain = Chain(self.params, self.prompt, self.seed, self.constraint)

    @property
    def last_pos(self) -> int:
        """Position of the last token, which is not in the cache yet."""
        return len(self.prompt) + len(self.ids) - 1

    @property
    def n_room(self) -> int:
        """Tokens that may still come, before the one that ends the answer in any case."""
        n_room = self.max_seq_len - 1 - self.last_pos
        if self.params.max_tokens is None:
            return n_room
        return min(n_room, self.params.max_tokens - len(self.ids) - 1)

    def add(self, token_id: int, logits: Logits) -> Step:
        """The next token of the answer, and what it was chosen from."""
        self.note(token_id)
        return Step(logprob_of(logits, self.params, token_id), self._stop_reason())

    def note(self, token_id: int) -> None:
        """The next token of the answer, whoever has chosen it."""
        self.ids.append(token_id)
        now = time.perf_counter() - self.begin_s
        self.clock.ttft_s = self.clock.ttft_s or now
        self.clock.decode_s = now - self.clock.queue_s - self.clock.prefill_s

    def _stop_reason(self) -> StopReason | None:
        if self.ids[-1] in self.stop_ids:
            return "stop"
        max_tokens = self.params.max_tokens
        if max_tokens is not None and len(self.ids) >= max_tokens:
            return "length"
        if self.last_pos >= self.max_seq_len:  # the last token cannot be fed back
            return "context"
        return None
