"""Speculative decoding: tokens are proposed cheaply, and the model checks several in one forward.

The rows of that forward are the last token and the proposals behind it. Row by row a token is
chosen, until one is not what had been proposed; it is new, and what was proposed behind it is
dropped. So every forward gives at least the one token that it gives without proposals.

Whatever is proposed, tokens are distributed as the model's own are (Leviathan et al., arXiv
2211.17192; Chen et al., arXiv 2302.01318). With p the probabilities of the model's candidates:

- A proposal x that nothing drew is taken with probability p(x), else the token is drawn from the
  others. That is what comes of drawing from p and comparing: so it is done, and the answer is the
  one of the same seed without proposals.
- A proposal that was drawn from q is taken with probability min(1, p(x) / q(x)), else the token is
  drawn from max(p - q, 0).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from m40llm.engine.candidates import Candidates, Floats, Ints
from m40llm.engine.sampling import Chain, Logits, draw

MAX_PROPOSALS: Final = 64  # of one forward


@dataclass(frozen=True)
class Proposal:
    """A token that may come next."""

    token_id: int
    drawn_from: Candidates | None = None  # a draft model's; None where nothing was drawn


class Proposer(Protocol):
    """Says what may come next; `n_tokens` is how much of it at a time."""

    n_tokens: int

    def begin(self, *, reuse_prefix: bool) -> None:
        """A request begins; with `reuse_prefix` what is known of the last one may be used."""
        ...

    def propose(
        self, prompt: Sequence[int], ids: Sequence[int], n: int, chain: Chain
    ) -> list[Proposal]:
        """Up to n tokens that follow prompt and ids; `chain` chooses the answer's, and stays."""
        ...


def choose(chain: Chain, logits: Logits, ids: Sequence[int], proposal: Proposal | None) -> int:
    """The next token's id: the proposal, or what is drawn in its place."""
    if proposal is None or proposal.drawn_from is None:
        return chain.choose(logits, ids)
    draws = chain.draws(ids)
    p, q = chain.candidates(logits, ids, draws), proposal.drawn_from
    p_x, q_x = (float(probabilities(of, [proposal.token_id])[0]) for of in (p, q))
    is_accepted = draws.accept * q_x < p_x
    token_id = proposal.token_id if is_accepted else draw(residual(p, q), draws.token)
    chain.heed(token_id, p)
    return token_id


def residual(p: Candidates, q: Candidates) -> Candidates:
    """max(p - q, 0), as candidates; p itself where rounding leaves nothing."""
    left = p.probabilities - probabilities(q, p.ids)
    some = np.flatnonzero(left > 0.0)
    if not some.size:
        return p
    return Candidates(p.ids[some], np.log(left[some]))


def probabilities(of: Candidates, ids: Ints | Sequence[int]) -> Floats:
    """float64[n] of these ids; 0 for one that is no candidate."""
    wanted = np.asarray(ids, np.int64)
    order = np.argsort(of.ids)
    at = np.minimum(np.searchsorted(of.ids, wanted, sorter=order), of.ids.size - 1)
    found = order[at]
    return np.where(of.ids[found] == wanted, of.probabilities[found], 0.0)
