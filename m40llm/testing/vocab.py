"""Two little vocabularies, complete enough for real tokenizers: any text can be encoded."""

from typing import Any

from gguf import TokenType

# Every piece is made of two earlier ones, as a trained vocabulary's pieces are.
_PIECES = "▁t he in er an ▁a on re ▁s ou nd ing ▁the ▁w ▁o at en ▁and ll is ▁b or ▁h ▁f it ▁in ▁to"
_MERGES = "h e|Ġ t|Ġt he|i n|in g|e r|a n|an d|Ġ and|o n|r e|Ġ a|o u|Ġ s|l l|he ll|Ġ w|o r|Ġw or"
_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def spm_metadata(n_tokens: int | None = None) -> dict[str, Any]:
    """A SentencePiece vocabulary (model "llama"): 3 control, 256 byte, then normal tokens.

    Scores fall by one a piece, so that earlier pieces are merged first; single characters come
    last. `n_tokens` pads with unused tokens.
    """
    characters = ["▁", *(chr(code) for code in range(0x21, 0x7F))]
    normal = _PIECES.split() + characters
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *normal]
    types = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL]
    types += [TokenType.BYTE] * 256 + [TokenType.NORMAL] * len(normal)
    scores = [0.0] * 259 + [-float(rank) for rank in range(len(normal))]
    n_unused = _pad(tokens, types, n_tokens)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores + [-1e6] * n_unused,
        "tokenizer.ggml.token_type": [int(type_) for type_ in types],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
    }


def bpe_metadata(n_tokens: int | None = None) -> dict[str, Any]:
    """A byte-level BPE vocabulary (model "gpt2"): 256 bytes, merges, three control tokens."""
    merges = _MERGES.split("|")
    tokens = [*_byte_characters(), *(merge.replace(" ", "") for merge in merges)]
    types = [TokenType.NORMAL] * len(tokens) + [TokenType.CONTROL] * len(_SPECIAL)
    tokens += _SPECIAL
    end_of_text, _, im_end = range(len(tokens) - len(_SPECIAL), len(tokens))
    _pad(tokens, types, n_tokens)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [int(type_) for type_ in types],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": end_of_text,
        "tokenizer.ggml.eos_token_id": im_end,
        "tokenizer.ggml.add_bos_token": False,
    }


def _pad(tokens: list[str], types: list[TokenType], n_tokens: int | None) -> int:
    """Adds unused tokens up to `n_tokens`; returns how many."""
    n_unused = 0 if n_tokens is None else n_tokens - len(tokens)
    if n_unused < 0:
        raise ValueError(f"vocab_size: expected at least {len(tokens)}, got {n_tokens}")
    tokens += [f"[PAD{index}]" for index in range(n_unused)]
    types += [TokenType.UNUSED] * n_unused
    return n_unused


def _byte_characters() -> list[str]:
    """The character that stands for each byte in byte-level BPE (GPT-2's bytes_to_unicode)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    characters = []
    n_shifted = 0
    for byte in range(256):
        if byte in printable:
            characters.append(chr(byte))
        else:
            characters.append(chr(0x100 + n_shifted))
            n_shifted += 1
    return characters
