"""Cuts special tokens out of a text before the rest is tokenized.

The same steps as llama.cpp's tokenizer_st_partition: the longest special token first, over all
the text that is left; white space beside a token goes where its attributes say so.
"""

from collections.abc import Sequence
from typing import NamedTuple

from m40llm.text.vocab import LSTRIP, MATCHED, RSTRIP, SPECIAL, Vocab

_WHITE_SPACE = " \t\n\v\f\r"  # C's isspace


class SpecialToken(NamedTuple):
    """A token that is looked for in the text."""

    token_id: int
    text: str
    on_request: bool  # only where special tokens are to be parsed
    lstrip: bool
    rstrip: bool


def special_tokens(vocab: Vocab) -> list[SpecialToken]:
    """Control, unknown and user-defined tokens, the longest (in bytes) first."""
    found = [
        SpecialToken(
            token_id,
            vocab.tokens[token_id],
            bool(vocab.attrs[token_id] & SPECIAL),
            bool(vocab.attrs[token_id] & LSTRIP),
            bool(vocab.attrs[token_id] & RSTRIP),
        )
        for token_id in vocab.where(MATCHED)
    ]
    return sorted(found, key=lambda special: -len(special.text.encode("utf-8")))


def partition(text: str, specials: Sequence[SpecialToken], parse_special: bool) -> list[str | int]:
    """The text as pieces still to be tokenized (never empty) and the ids found between them."""
    fragments: list[str | int] = [text] if text else []
    for special in specials:
        if special.text not in text or (special.on_request and not parse_special):
            continue
        cut: list[str | int] = []
        for fragment in fragments:
            cut += _cut(fragment, special) if isinstance(fragment, str) else [fragment]
        fragments = cut
    return fragments


def _cut(text: str, special: SpecialToken) -> list[str | int]:
    parts: list[str | int] = []
    left, found, right = text.partition(special.text)
    while found:
        left = left.rstrip(_WHITE_SPACE) if special.lstrip else left
        right = right.lstrip(_WHITE_SPACE) if special.rstrip else right
        parts += [left, special.token_id] if left else [special.token_id]
        left, found, right = right.partition(special.text)
    return [*parts, left] if left else parts
