"""SentencePiece vocabularies ("llama" in GGUF): merges by score, bytes for what is left.

The vocabulary becomes a SentencePiece model in memory. llama.cpp merges into any token, of
whatever type, so all but the byte tokens are entered as normal pieces; the unknown piece that
SentencePiece insists on is one of our own behind the last token.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from m40llm.errors import ModelFileError
from m40llm.text.vocab import BYTE, MATCHED, NORMAL, Vocab

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

SPACE: Final = "\u2581"  # stands for a space in SentencePiece's tokens
_BYTE_TOKEN: Final = re.compile(r"<0x([0-9A-F]{2})>")


def byte_of(text: str) -> int | None:
    """The byte that a token such as "<0x0A>" stands for, None for any other text."""
    match = _BYTE_TOKEN.fullmatch(text)
    return int(match[1], 16) if match else None


class SpmEncoder:
    """Tokenizes text that holds no special tokens."""

    def __init__(self, vocab: Vocab) -> None:
        self._vocab = vocab
        self._processor = _processor(vocab)
        self._unk_id = vocab.roles["unk"]

    def encode(self, text: str) -> list[int]:
        """The ids; what neither a piece nor bytes can write is UNK, or left out without one."""
        ids: list[int] = self._processor.encode(text)
        n_tokens = len(self._vocab.tokens)
        if max(ids, default=0) < n_tokens:
            return ids
        unk = [] if self._unk_id is None else [self._unk_id]
        return [i for token_id in ids for i in (unk if token_id == n_tokens else [token_id])]

    def token_bytes(self, token_id: int) -> bytes:
        """What the token writes; unused tokens write nothing."""
        text, attr = self._vocab.tokens[token_id], int(self._vocab.attrs[token_id])
        if attr & MATCHED:
            return text.encode("utf-8")
        if attr & NORMAL:
            return text.replace(SPACE, " ").encode("utf-8")
        byte = byte_of(text) if attr & BYTE else None
        return b"" if byte is None else bytes([byte])


def _processor(vocab: Vocab) -> SentencePieceProcessor:
    from sentencepiece import SentencePieceProcessor
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    kinds = ModelProto.SentencePiece
    model = ModelProto()
    assert vocab.scores is not None  # read_vocab reads them for every spm file
    byte_tokens = {i for i, text in enumerate(vocab.tokens) if byte_of(text) is not None}
    for token_id, (text, score) in enumerate(zip(vocab.tokens, vocab.scores.tolist(), strict=True)):
        kind = kinds.BYTE if token_id in byte_tokens else kinds.NORMAL
        model.pieces.add(piece=text, score=score, type=kind)
    model.pieces.add(piece=_unused_text(vocab), score=0.0, type=kinds.UNKNOWN)
    model.trainer_spec.model_type = model.trainer_spec.BPE
    model.trainer_spec.byte_fallback = len(byte_tokens) == 256
    model.trainer_spec.unk_piece = model.pieces[-1].piece
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = False  # Tokenizer.encode adds the space itself
    model.normalizer_spec.remove_extra_whitespaces = False
    model.normalizer_spec.escape_whitespaces = True
    try:
        return SentencePieceProcessor(model_proto=model.SerializeToString())
    except RuntimeError as error:
        raise ModelFileError(f"key 'tokenizer.ggml.tokens': SentencePiece: {error}") from None


def _unused_text(vocab: Vocab) -> str:
    text = "<unused-unknown>"
    while text in vocab.ids:
        text += ">"
    return text
