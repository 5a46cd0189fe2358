"""Proposals of a second, smaller model with the same vocabulary."""

from collections.abc import Sequence
from typing import Final

from m40llm.engine.engine import Engine
from m40llm.engine.sampling import Chain, draw
from m40llm.engine.speculate import Proposal
from m40llm.errors import ModelFileError, RequestError

N_TOKENS: Final = 4


class DraftModel:
    """Implements `Proposer`: draws from its own logits as the request asks, penalties and all."""

    def __init__(self, engine: Engine, n_tokens: int = N_TOKENS) -> None:
        self.n_tokens = n_tokens
        self._engine = engine

    def begin(self, *, reuse_prefix: bool) -> None:
        if not reuse_prefix:  # the same seed is to draw the same tokens, to the last bit
            self._engine.forget()

    def propose(
        self, prompt: Sequence[int], ids: Sequence[int], n: int, chain: Chain
    ) -> list[Proposal]:
        """None from where the draft model's own context ends, an answer, or what it can say: its
        failure is not the model's."""
        chain, answer = chain.fork(), list(ids)
        proposals: list[Proposal] = []
        n_room = self._engine.max_seq_len - len(prompt) - len(ids) + 1
        for _ in range(min(n, n_room)):
            try:
                logits = self._engine.logits_after([*prompt, *answer])
                draws = chain.draws(answer)
                candidates = chain.candidates(logits, answer, draws)
            except (RequestError, ModelFileError):  # nothing may follow; logits are not finite
                break
            token_id = draw(candidates, draws.proposal)
            chain.heed(token_id, candidates)
            proposals.append(Proposal(token_id, candidates))
            answer.append(token_id)
            if token_id in self._engine.stop_ids:
                break
        return proposals
