"""Proposals from the text itself: what followed the last time that the text went like this.

"Prompt lookup decoding" (Saxena, 2023). It costs next to nothing, and is right where an answer
repeats: summaries, quotations, code that is edited, lists.
"""

from collections.abc import Sequence
from typing import Final

from m40llm.engine.sampling import Chain
from m40llm.engine.speculate import Proposal

# Tokens at the text's end that are looked for, the longest first. Two that stood there before say
# too little: on cpu, where sixteen rows cost as much as three, free text would come out slower.
SIZES: Final = (4, 3)
N_TOKENS: Final = 15


class NgramLookup:
    """Implements `Proposer`."""

    def __init__(self, n_tokens: int = N_TOKENS) -> None:
        self.n_tokens = n_tokens
        self._ends: dict[tuple[int, ...], int] = {}  # n-gram -> where its last occurrence ends
        self._n_indexed = 0  # n-grams that end here or before are among them

    def begin(self, *, reuse_prefix: bool) -> None:
        self._ends, self._n_indexed = {}, 0

    def propose(
        self, prompt: Sequence[int], ids: Sequence[int], n: int, chain: Chain
    ) -> list[Proposal]:
        return [Proposal(token_id) for token_id in self.lookup([*prompt, *ids], n)]

    def lookup(self, text: list[int], n: int) -> list[int]:
        """n tokens that followed the text's end where it stood before; none where it did not.

        `text` is that of the last call with more behind it. Where an occurrence is so near the
        end that fewer than n tokens follow, what follows repeats.
        """
        self._index(text)
        for size in SIZES:
            end = self._ends.get(tuple(text[-size:])) if size < len(text) else None
            if end is not None:
                period = len(text) - end
                return [text[end + at % period] for at in range(n)]
        return []

    def _index(self, text: list[int]) -> None:
        """Every n-gram but those at the text's end, which nothing follows yet."""
        for end in range(self._n_indexed + 1, len(text)):
            for size in SIZES:
                if size <= end:
                    self._ends[tuple(text[end - size : end])] = end
        self._n_indexed = max(self._n_indexed, len(text) - 1)
