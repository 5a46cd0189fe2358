"""The launches that a model's decode step and prefill are made of, on a card that is imagined."""

from collections import Counter
from dataclasses import dataclass

from m40llm.errors import UnsupportedModelError
from m40llm.gguf import GGUFFile
from m40llm.llm.plan import Plan
from m40llm.model.arch import Architecture
from m40llm.model.batch import Batch
from m40llm.model.hparams import HParams
from m40llm.model.transformer import Transformer
from m40llm.model.weights import load_weights, rope_factors
from m40llm.sm52.cards import CardSpec
from m40llm.sm52.imagined import ImaginedCard, ImaginedOps, Launch


@dataclass(frozen=True)
class Step:
    """What is launched for n_tokens, and how often: the model's own ops, one after another."""

    n_tokens: int
    launches: Counter[Launch]


class ImaginedSteps:
    """The steps of a transformer over the ops of an imagined card; chunk: tokens of a prompt that
    are read at a time."""

    def __init__(self, card: ImaginedCard, model: Transformer, chunk: int) -> None:
        self.card, self._model, self._chunk = card, model, chunk

    def decode(self, pos: int) -> Step:
        """One token of one sequence, which has so many in the cache."""
        return self._step([Batch.decode([(0, pos, 0)], 1)])

    def prefill(self, n_tokens: int) -> Step:
        """A prompt, in chunks as the engine reads it; logits of its last token."""
        chunk = self._chunk
        starts = range(0, n_tokens, chunk)
        pieces = [(0, first, [0] * min(chunk, n_tokens - first)) for first in starts]
        return self._step(
            [
                Batch.of(*[piece], logits="last" if piece is pieces[-1] else "none")
                for piece in pieces
            ]
        )

    def _step(self, batches: list[Batch]) -> Step:
        card, model = self.card, self._model
        card.launches.clear()
        for batch in batches:
            card.positions = batch.pos
            rows = model.layers(batch)
            if batch.logit_rows.size:
                model.logits(batch, rows)
        n_tokens = sum(batch.n_tokens for batch in batches)
        return Step(n_tokens, Counter(card.launches))


class ImaginedModel(ImaginedSteps):
    """A model file on a card as it would lie there by a plan. No matrices are read."""

    def __init__(
        self, spec: CardSpec, file: GGUFFile, arch: Architecture, hp: HParams, plan: Plan
    ) -> None:
        if hp.n_experts:
            raise UnsupportedModelError(f"{arch.name} with experts: no projection of it yet")
        self.plan, ops = plan, ImaginedOps(card := ImaginedCard(spec))
        model = Transformer(
            *(ops, arch, hp, load_weights(ops, file, arch, hp)),
            n_seqs=plan.n_seqs,
            max_seq_len=plan.max_seq_len,
            max_tokens=plan.max_tokens,
            max_logits=plan.max_logits,
            freq_factors=rope_factors(file, hp, plan.max_seq_len),
            kv_type=plan.kv_type,
        )
        super().__init__(card, model, plan.max_tokens)
