"""Slot: a sequence of the KV cache, and the job that has it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from m40llm.engine.job import Job
from m40llm.model.lora import Adapter
from m40llm.model.staged import Model

_MOST_ROWS: Final = 64  # of a decode step on a card: gemm's ALIKE_TOKENS are more


@dataclass(eq=False)
class Slot:
    """One sequence of the cache.

    whole_ids     what it holds from its beginning on, in whole chunks that a prefill computed:
                  another prompt that begins so need not compute them again
    n_read        tokens of the job's prompt that are in the cache
    is_on_device  the device's decoder makes the job's tokens
    last_used     number of the last job
    adapter       that the cache was made with
    """

    index: int
    whole_ids: list[int] = field(default_factory=list)
    adapter: Adapter | None = None
    job: Job | None = None
    n_read: int = 0
    is_on_device: bool = False
    last_used: int = 0

    @property
    def is_reading(self) -> bool:
        """Whether the job's prompt is not all in the cache."""
        return self.job is not None and self.n_read < len(self.job.request.prompt)

    @property
    def n_tokens(self) -> int:
        """Tokens of the job that the cache holds."""
        if self.job is None:
            return 0
        return self.n_read + max(0, len(self.job.request.ids) - 1)

    def n_shared(self, job: Job, chunk: int) -> int:
        """Tokens of the prompt that need not be computed: whole chunks, and not the last token,
        whose logits are wanted, nor any where hidden states are."""
        if job.read is not None or job.adapter is not self.adapter:
            return 0
        prompt, n = job.request.prompt, 0
        most = min(len(self.whole_ids), len(prompt) - 1)
        while n + chunk <= most and self.whole_ids[n : n + chunk] == prompt[n : n + chunk]:
            n += chunk
        return n

    def give(self, job: Job, chunk: int, number: int) -> None:
        """The job begins where the cache has the same tokens."""
        self.n_read = self.n_shared(job, chunk)
        self.whole_ids = self.whole_ids[: self.n_read]
        self.job, self.adapter, self.last_used = job, job.adapter, number
        self.is_on_device = False

    def note_read(self, ids: Sequence[int], chunk: int) -> None:
        """The next tokens of the prompt are in the cache."""
        if len(ids) == chunk:
            self.whole_ids.extend(ids)
        self.n_read += len(ids)


def best_slot(slots: Sequence[Slot], job: Job, chunk: int, *, lowest: bool = False) -> Slot | None:
    """The free one that has most of the prompt; else the one unused for longest, or the first."""
    free = [slot for slot in slots if slot.job is None]

    def worth(slot: Slot) -> tuple[int, int]:
        return slot.n_shared(job, chunk), -slot.index if lowest else -slot.last_used

    return max(free, key=worth, default=None)


def step_rows(model: Model) -> int:
    """Rows of a decode step in the host's loop; on a card there are always so many.

    Where more rows choose experts than there are, each expert gets the rows that chose it, and a
    row's bits depend on how many those are.
    """
    if model.ops.alike_rows:
        return model.ops.alike_rows
    hp, n_rows = model.hp, min(model.kv.n_seqs, _MOST_ROWS)
    return min(n_rows, max(1, hp.n_experts // hp.n_experts_used)) if hp.n_experts else n_rows
