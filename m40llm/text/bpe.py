"""Byte-level BPE vocabularies ("gpt2" in GGUF), through the `tokenizers` library.

llama.cpp merges texts, whether or not they are tokens, and writes as bytes what is none in the
end. `tokenizers` merges tokens: what is missing is entered as phantoms behind the last token,
which are replaced by what llama.cpp would write.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from m40llm.errors import ModelFileError
from m40llm.text.pretokenizers import PreTokenizer
from m40llm.text.spm import SPACE, byte_of
from m40llm.text.vocab import BYTE, MATCHED, NORMAL, Vocab

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Pipeline
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import Sequence


def _byte_letters() -> dict[int, str]:
    """GPT-2's printable letter for each byte: itself where it prints, else one from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    letters = {byte: chr(byte) for byte in printable}
    return letters | {byte: chr(0x100 + n) for n, byte in enumerate(others)}


LETTER_OF_BYTE: Final = _byte_letters()
BYTE_OF_LETTER: Final = {letter: bytes([byte]) for byte, letter in LETTER_OF_BYTE.items()}
_LINES: Final = re.compile(r"\n+|[^\n]+")


class BpeEncoder:
    """Tokenizes text that holds no special tokens."""

    def __init__(self, vocab: Vocab) -> None:
        self._vocab = vocab
        self._pipeline, phantoms = _pipeline(vocab)
        self._phantom_ids = {
            len(vocab.tokens) + n: _in_bytes(vocab, text) for n, text in enumerate(phantoms)
        }

    def encode(self, text: str) -> list[int]:
        """The ids; bytes that the vocabulary cannot write are left out, as in llama.cpp."""
        if self._vocab.pre.escape_spaces:
            text = text.replace(" ", SPACE)
        if not self._vocab.pre.newline_runs:
            return self._encode(text)
        ids: list[int] = []
        for line in _LINES.findall(text):
            known = self._vocab.ids.get(line) if line[0] == "\n" else None
            ids += self._encode(line) if known is None else [known]
        return ids

    def token_bytes(self, token_id: int) -> bytes:
        """What the token writes; unused tokens write nothing."""
        text, attr = self._vocab.tokens[token_id], int(self._vocab.attrs[token_id])
        if attr & MATCHED:
            return text.encode("utf-8")
        if attr & BYTE:
            byte = byte_of(text)
            return b"" if byte is None else bytes([byte])
        if not attr & NORMAL:
            return b""
        if not self._vocab.pre.byte_encode:
            return text.replace(SPACE, " ").encode("utf-8")
        return b"".join(BYTE_OF_LETTER.get(letter) or letter.encode("utf-8") for letter in text)

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._pipeline.encode(text, add_special_tokens=False).ids
        first = len(self._vocab.tokens)
        if max(ids, default=0) < first:
            return ids
        phantoms = self._phantom_ids
        return [i for token_id in ids for i in phantoms.get(token_id, [token_id])]


def _merge_pairs(merges: list[str]) -> list[tuple[str, str]]:
    """Both sides of each merge by rank; the first of equals counts."""
    pairs = [(left, right) for left, _, right in (m.partition(" ") for m in dict.fromkeys(merges))]
    if all(left and right for left, right in pairs):
        return pairs
    return [_merge_pair(merge, rank) for rank, merge in enumerate(dict.fromkeys(merges))]


def _merge_pair(merge: str, rank: int) -> tuple[str, str]:
    """The same for a left side that begins with a space; refuses what is no pair."""
    cut = merge.find(" ", 1)
    if cut < 0 or cut == len(merge) - 1:
        raise ModelFileError(
            f"key 'tokenizer.ggml.merges': item {rank}: expected two tokens with a space between "
            f"them, got {merge[:80]!r}"
        )
    return merge[:cut], merge[cut + 1 :]


def _phantoms(vocab: Vocab, pairs: list[tuple[str, str]]) -> list[str]:
    """Texts that merging can meet though they are no tokens, each once."""
    texts: set[str] = set(LETTER_OF_BYTE.values()) if vocab.pre.byte_encode else set()
    texts.update(left + right for left, right in pairs)
    for sides in zip(*pairs, strict=True):
        texts.update(sides)
    return sorted(texts - vocab.ids.keys())


def _in_bytes(vocab: Vocab, text: str) -> list[int]:
    """What llama.cpp writes for a text that is no token: ids of those bytes that are one."""
    if vocab.pre.byte_encode:
        names = [letter for letter in text if letter.isascii()]
    else:
        names = [f"<0x{byte:02X}>" for byte in text.encode("utf-8")]
    return [vocab.ids[name] for name in names if name in vocab.ids]


def _model(vocab: Vocab, pairs: list[tuple[str, str]], phantoms: list[str]) -> BPE:
    from tokenizers.models import BPE

    ids = dict(vocab.ids) if phantoms else vocab.ids
    ids |= {text: len(vocab.tokens) + n for n, text in enumerate(phantoms)}
    return BPE(
        vocab=ids,
        merges=pairs,
        ignore_merges=vocab.pre.ignore_merges,
        byte_fallback=not vocab.pre.byte_encode,
    )


def _pipeline(vocab: Vocab) -> tuple[Pipeline, list[str]]:
    """The library's tokenizer, and its phantoms by id from the last token on."""
    from tokenizers import Tokenizer as Pipeline

    pairs = _merge_pairs(vocab.merges)
    letters_known = not vocab.pre.byte_encode or vocab.ids.keys() >= BYTE_OF_LETTER.keys()
    phantoms = [] if letters_known else _phantoms(vocab, pairs)
    try:
        model = _model(vocab, pairs, phantoms)
    except Exception:  # the library raises no narrower one: a merge of what is no token
        phantoms = _phantoms(vocab, pairs)
        model = _model(vocab, pairs, phantoms)
    pipeline = Pipeline(model)
    pipeline.pre_tokenizer = _cutter(vocab.pre)
    return pipeline, phantoms


def _cutter(pre: PreTokenizer) -> Sequence:
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

    steps: list[Any] = [Split(Regex(p), behavior="isolated") for p in pre.patterns]
    if pre.byte_encode:
        steps = [*steps, ByteLevel(add_prefix_space=False, use_regex=False)]
    return Sequence(steps)
