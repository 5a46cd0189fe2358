"""Text: tokenizers and chat templates, from nothing but the model file."""

import os

from m40llm.gguf import GGUFFile, open_gguf
from m40llm.text.stream import StreamDecoder
from m40llm.text.tokenizer import Encoder, Tokenizer
from m40llm.text.vocab import Vocab, read_vocab

__all__ = ["StreamDecoder", "Tokenizer", "build_tokenizer", "tokenizer_from_gguf"]


def tokenizer_from_gguf(path: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer of a GGUF file; one that holds the vocabulary only will do.

    ModelFileError names the key that is missing or wrong, UnsupportedModelError the kind of
    tokenizer that m40llm does not know.
    """
    with open_gguf(path) as file:
        return build_tokenizer(file)


def build_tokenizer(file: GGUFFile) -> Tokenizer:
    """The tokenizer of an open file; errors as `tokenizer_from_gguf`. The file may be closed."""
    vocab = read_vocab(file)
    return Tokenizer(vocab, _encoder(vocab))


def _encoder(vocab: Vocab) -> Encoder:
    if vocab.kind == "spm":  # sentencepiece and tokenizers load only when they are needed
        from m40llm.text.spm import SpmEncoder

        return SpmEncoder(vocab)
    from m40llm.text.bpe import BpeEncoder

    return BpeEncoder(vocab)
