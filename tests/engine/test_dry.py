"""DRY against penalties worked out by hand, and against a plain search on drawn texts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m40llm.engine.candidates import Candidates
from m40llm.engine.dry import dry
from m40llm.engine.sampling import choose
from m40llm.engine.sampling_params import SamplingParams

N_TOKENS = 10


def lost(text: list[int], **fields: object) -> dict[int, float]:
    """token id -> what it lost, where it did; half of the text is prompt, half answer."""
    how = {"dry_multiplier": 1.0, "dry_base": 2.0, "dry_breakers": (9,)} | fields
    before = Candidates.of(np.zeros(N_TOKENS, np.float32))
    after = dry(before, SamplingParams(**how), text[: len(text) // 2], text[len(text) // 2 :])
    assert not before.logits.any()
    return {i: -float(x) for i, x in enumerate(after.logits) if x}


def test_a_repetition_costs_more_the_longer_it_is() -> None:
    assert lost([1, 2, 3, 0, 2]) == {}  # one token repeated: free
    assert lost([1, 2, 3, 0, 1, 2]) == {3: 1.0}  # 1 2 again, 3 would go on
    assert lost([5, 1, 2, 3, 0, 5, 1, 2]) == {3: 2.0}
    assert lost([4, 5, 1, 2, 3, 0, 4, 5, 1, 2]) == {3: 4.0}
    assert lost([5, 1, 2, 3, 0, 5, 1, 2], dry_multiplier=0.5, dry_base=3.0) == {3: 1.5}
    assert lost([5, 1, 2, 3, 0, 5, 1, 2], dry_allowed_length=3) == {3: 1.0}


def test_the_longest_copy_counts_for_each_token() -> None:
    text = [1, 2, 3, 7, 1, 2, 3, 7, 2, 4, 6, 1, 2]
    assert lost(text) == {3: 1.0}
    assert lost([1, 2, 3, 0, 7, 1, 2, 4, 0, 7, 1, 2]) == {3: 1.0, 4: 4.0}


def test_copies_may_overlap() -> None:
    assert lost([1, 1, 1, 1]) == {1: 2.0}  # three tokens at the end stood one earlier


def test_a_breaker_stops_it_and_is_not_penalised() -> None:
    assert lost([1, 9, 2, 3, 4, 1, 9, 2, 3]) == {4: 1.0}  # 2 3 is what counts, not 1 9 2 3
    assert lost([1, 9, 2, 4, 1, 9, 2]) == {}
    assert lost([1, 2, 9, 5, 1, 2]) == {}  # 9 itself would go on


def test_only_the_last_n_tokens_are_looked_at() -> None:
    text = [1, 2, 3, 0, 1, 2]
    assert lost(text, dry_last_n=6) == {3: 1.0}
    assert lost(text, dry_last_n=5) == {}  # of the copy only its 2 is left
    assert lost(text, dry_last_n=0) == {}


def test_the_power_is_cut_to_what_fp32_holds() -> None:
    assert 1e38 < lost([1] * 400)[1] < 3.5e38
    assert lost([1] * 400, dry_base=1.0) == {1: 1.0}


def test_greedy_heeds_it() -> None:
    logits = np.zeros(N_TOKENS, np.float32)
    logits[3] = 0.5
    params = SamplingParams(temperature=0, dry_multiplier=1.0, dry_breakers=())
    assert choose(logits, params, [1, 2, 3, 0, 1], [2], seed=0) == 0
    assert choose(logits, params, [1, 2, 3, 0, 1], [5], seed=0) == 3


@given(st.lists(st.integers(0, 3), max_size=40), st.sampled_from([(), (3,), (0, 3)]))
def test_equals_a_plain_search(text: list[int], breakers: tuple[int, ...]) -> None:
    longest: dict[int, int] = {}
    for end in range(1, len(text)):  # the copy is text[end - n : end], text[end] followed it
        n = 0
        while n < end and text[end - 1 - n] == text[-1 - n] and text[-1 - n] not in breakers:
            n += 1
        longest[text[end]] = max(longest.get(text[end], 0), n)
    expected = {
        i: 2.0 ** (n - 2) for i, n in sorted(longest.items()) if n >= 2 and i not in breakers
    }
    assert lost(text, dry_breakers=breakers) == pytest.approx(expected)
