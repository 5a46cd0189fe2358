"""The launches that a model's decode step and prefill are made of, on a card that is imagined.

Where only some layers are on the card, those of its part: the CPU hands the residual stream over.
A decode step takes the host's commands and chooses the token, as each form of decode does; it is
greedy, since what a sampler reads depends on its settings.
"""

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from m40llm.gguf import GGUFFile
from m40llm.kernels.program import words
from m40llm.kernels.program.ends import StepEnds, begin_step, end_step
from m40llm.llm.plan import Plan
from m40llm.model.arch import Architecture
from m40llm.model.batch import Batch
from m40llm.model.hparams import HParams
from m40llm.model.transformer import Transformer
from m40llm.model.weights import load_weights, rope_factors
from m40llm.sm52.cards import CardSpec
from m40llm.sm52.imagined import ImaginedCard, ImaginedOps, Launch
from m40llm.sm52.work import Work


@dataclass(frozen=True)
class Step:
    """What is launched for n_tokens, and how often: the model's own ops, one after another."""

    n_tokens: int
    launches: Counter[Launch]


class ImaginedSteps:
    """Of a transformer over the ops of an imagined card; chunk: tokens of a prompt that are read at
    a time."""

    def __init__(self, card: ImaginedCard, model: Transformer, chunk: int) -> None:
        self.card, self._model, self._chunk = card, model, chunk

    def decode(self, pos: int) -> Step:
        """One token of one sequence, which has so many in the cache, up to its logits."""
        self.card.launches.clear()
        self._run(Batch.decode([(0, pos, 0)], 1))
        return Step(1, Counter(self.card.launches))

    def prefill(self, n_tokens: int) -> Step:
        """A prompt, in chunks as the engine reads it; logits of its last token."""
        starts = range(0, n_tokens, self._chunk)
        pieces = [(0, first, [0] * min(self._chunk, n_tokens - first)) for first in starts]
        self.card.launches.clear()
        for piece in pieces:
            self._run(Batch.of(piece, logits="last" if piece is pieces[-1] else "none"))
        return Step(n_tokens, Counter(self.card.launches))

    def _run(self, batch: Batch) -> None:
        """Through the layers on the card."""
        model = self._model
        self.card.positions = batch.pos
        has_embedding = model.part.has_embedding
        shape = batch.n_tokens, model.hp.n_embd
        rows = model.layers(batch, None if has_embedding else np.zeros(shape, np.float32))
        if batch.logit_rows.size:
            model.logits(batch, rows)


class ImaginedModel(ImaginedSteps):
    """A model file on a card as it would lie there by a plan, whose last share is the card's. No
    matrices are read."""

    def __init__(
        self, spec: CardSpec, file: GGUFFile, arch: Architecture, hp: HParams, plan: Plan
    ) -> None:
        card, self.plan = ImaginedCard(spec), plan
        ops, part = ImaginedOps(card), plan.shares[-1].part
        model = Transformer(
            *(ops, arch, hp, load_weights(ops, file, arch, hp, part=part)),
            n_seqs=plan.n_seqs,
            max_seq_len=plan.max_seq_len,
            max_tokens=plan.max_tokens,
            max_logits=plan.max_logits,
            freq_factors=rope_factors(file, hp, plan.max_seq_len),
            kv_type=plan.kv_type,
            part=part,
        )
        super().__init__(card, model, plan.max_tokens)
        self._ends = StepEnds(card.alloc((1, words.N_WORDS), np.int64), n_seqs=1)

    def decode(self, pos: int) -> Step:
        """With the host's commands before it, and the choice of the token behind it."""
        self.card.launches.clear()
        begin_step(self._ends, stream=self.card)
        self._run(Batch.decode([(0, pos, 0)], 1))
        self._choose_token()
        return Step(1, Counter(self.card.launches))

    def _choose_token(self) -> None:
        """All logits read and kept by the survey; then one block has work, the others return."""
        end_step(self._ends, stream=self.card)
        *others, survey, last = self.card.launches
        kept = Work(2 * 4 * self._model.hp.vocab_size)
        self.card.launches = [*others, replace(survey, work=kept), replace(last, grid=(1,))]
