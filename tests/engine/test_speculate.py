"""Choosing beside a proposal: the law of the token is the chain's own, whatever was proposed."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m40llm.engine.candidates import Candidates
from m40llm.engine.ngram import SIZES, NgramLookup
from m40llm.engine.sampling import Chain, draw
from m40llm.engine.sampling_params import SamplingParams
from m40llm.engine.speculate import Proposal, choose, probabilities, residual

P = np.array([0.05, 0.45, 0.2, 0.3, 0.0])  # of tokens 0 to 4
Q = np.array([0.3, 0.1, 0.2, 0.0, 0.4])
EVERYTHING = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "temperature": 1.0}
N = 4_000
# What chi-square exceeds once in 10,000, by degrees of freedom.
RARE = {1: 15.2, 3: 21.2, 15: 44.3}


def logits(of: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(of, 1e-30)).astype(np.float32)


def chi_square(drawn: Counter[int], law: np.ndarray) -> float:
    assert set(drawn) <= set(np.flatnonzero(law).tolist())
    n = sum(drawn.values())
    return sum((drawn[i] - n * p) ** 2 / (n * p) for i, p in enumerate(law) if p > 0)


def drafted(at: int, chain: Chain) -> Proposal:
    draws = chain.draws([])
    q = chain.fork().candidates(logits(Q), [], draws)
    return Proposal(draw(q, draws.proposal), q)


def test_a_drafts_proposals_leave_the_law_alone() -> None:
    """And are accepted as often as two laws can agree: sum of min(p, q)."""
    params = SamplingParams(**EVERYTHING)
    chosen: Counter[int] = Counter()
    n_accepted = 0
    for at in range(N):
        chain = Chain(params, [0] * at, seed=42)
        proposal = drafted(at, chain)
        token_id = choose(chain, logits(P), [], proposal)
        chosen[token_id] += 1
        n_accepted += token_id == proposal.token_id
    assert chi_square(chosen, P) < RARE[3]
    most = float(np.minimum(P, Q).sum())
    assert abs(n_accepted / N - most) < 4 * (most * (1 - most) / N) ** 0.5


def test_the_law_after_the_whole_chain() -> None:
    """top_k = 2 of the model leaves 0.45 and 0.3; the draft's own two are others."""
    params = SamplingParams(**{**EVERYTHING, "top_k": 2})
    law = np.array([0, 0.6, 0, 0.4, 0])
    chosen: Counter[int] = Counter()
    for at in range(N):
        chain = Chain(params, [0] * at, seed=7)
        chosen[choose(chain, logits(P), [], drafted(at, chain))] += 1
    assert chi_square(chosen, law) < RARE[1]


@pytest.mark.parametrize("proposed", range(5))
def test_a_proposal_that_nothing_drew_changes_nothing(proposed: int) -> None:
    """It is accepted with probability p(x), and the others keep their shares."""
    params = SamplingParams(**EVERYTHING)
    chosen: Counter[int] = Counter()
    for at in range(N // 2):
        chain, plain = (Chain(params, [0] * at, seed=3) for _ in range(2))
        token_id = choose(chain, logits(P), [], Proposal(proposed))
        assert token_id == plain.choose(logits(P), [])
        chosen[token_id] += 1
    assert chi_square(chosen, P) < RARE[3]


def test_two_tokens_in_a_row_are_those_of_the_joint_law() -> None:
    """The second position's law depends on the first token; proposals were drawn for another."""
    second = {0: P[::-1], 1: Q, 2: P, 3: np.array([0.1, 0.2, 0.3, 0.4, 0.0])}
    params = SamplingParams(**EVERYTHING)
    pairs: Counter[tuple[int, int]] = Counter()
    for at in range(N):
        chain = Chain(params, [0] * at, seed=11 + at)
        first = drafted(at, chain)
        a = choose(chain, logits(P), [], first)
        draws = chain.draws([a])
        q = chain.candidates(logits(Q), [a], draws)
        proposal = Proposal(draw(q, draws.proposal), q) if a == first.token_id else None
        pairs[a, choose(chain, logits(second[a]), [a], proposal)] += 1
    law = {(a, b): P[a] * p for a in second for b, p in enumerate(second[a]) if p > 0}
    assert set(pairs) <= set(law)
    square = sum((pairs[pair] - N * p) ** 2 / (N * p) for pair, p in law.items())
    assert square < RARE[15]  # there are 16 pairs


def test_mirostat_learns_from_what_was_chosen() -> None:
    params = SamplingParams(mirostat=2, mirostat_tau=1.0, seed=5)
    chain, plain = (Chain(params, [], seed=5) for _ in range(2))
    ids: list[int] = []
    for _ in range(20):
        token_id = choose(chain, logits(P), ids, Proposal(1))
        assert token_id == plain.choose(logits(P), ids)
        ids.append(token_id)
    assert chain._most_surprise == plain._most_surprise
    before = chain._most_surprise
    chain.fork().heed(3, chain.candidates(logits(P), ids, chain.draws(ids)))
    assert chain._most_surprise == before
    choose(chain, logits(P), ids, drafted(0, chain))
    assert chain._most_surprise != before


def test_residual() -> None:
    p, q = (Candidates.of(logits(of)) for of in (P, Q))
    left = residual(p, q)
    assert left.ids.tolist() == [1, 3]
    assert left.probabilities == pytest.approx([0.35 / 0.65, 0.3 / 0.65], rel=1e-6)
    assert residual(p, p) is p  # nothing is left: rounding alone can have come here


def test_probabilities_of_ids_in_any_order() -> None:
    some = Candidates(np.array([7, 2, 5]), np.log([0.5, 0.25, 0.25]))
    assert probabilities(some, [5, 7, 3, 9]) == pytest.approx([0.25, 0.5, 0.0, 0.0])


def test_lookup_takes_the_last_occurrence_of_the_longest_end() -> None:
    text = [1, 2, 3, 4, 10, 9, 2, 3, 4, 20, 8, 1, 2, 3, 4]
    assert NgramLookup().lookup(text, 2) == [10, 9]  # of 1 2 3 4, not the later one of 2 3 4
    assert NgramLookup().lookup(text[1:6] + text[6:9] + [20, 2, 3, 4], 2) == [20, 2]
    assert NgramLookup().lookup([1, 2, 9, 1, 2], 4) == []  # two are too few
    assert NgramLookup().lookup([5], 4) == []


def test_what_follows_repeats_where_it_is_too_short() -> None:
    assert NgramLookup().lookup([7, 7, 7, 7], 4) == [7, 7, 7, 7]
    assert NgramLookup().lookup([1, 5, 6, 5, 6, 5], 5) == [6, 5, 6, 5, 6]


@given(
    text=st.lists(st.integers(0, 2), min_size=1, max_size=40),
    cuts=st.sets(st.integers(1, 40)),
    n=st.integers(1, 8),
)
def test_lookup_of_a_growing_text(text: list[int], cuts: set[int], n: int) -> None:
    """As a search through the whole text, however it came."""
    lookup = NgramLookup()
    for end in sorted({cut for cut in cuts if cut < len(text)} | {len(text)}):
        assert lookup.lookup(text[:end], n) == searched(text[:end], n)


def searched(text: list[int], n: int) -> list[int]:
    for size in SIZES:
        for start in range(len(text) - size - 1, -1, -1):
            if text[start : start + size] == text[-size:]:
                following = text[start + size :]
                return (following * n)[:n]
    return []
