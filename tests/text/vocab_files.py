"""Small vocabulary-only GGUF files for the tests of text."""

from pathlib import Path
from typing import Any

from gguf import GGUFWriter, TokenType

from m40llm.text.bpe import LETTER_OF_BYTE

NORMAL, UNKNOWN, CONTROL = TokenType.NORMAL, TokenType.UNKNOWN, TokenType.CONTROL
USER, UNUSED, BYTE = TokenType.USER_DEFINED, TokenType.UNUSED, TokenType.BYTE

SPM = [
    ("<unk>", UNKNOWN, 0.0),
    ("<s>", CONTROL, 0.0),
    ("</s>", CONTROL, 0.0),
    *((f"<0x{byte:02X}>", BYTE, 0.0) for byte in range(256)),
    *(("▁" + "abcdefgh"[n] if n < 8 else "abcdefgh"[n - 8], NORMAL, -20.0 - n) for n in range(16)),
    ("▁", NORMAL, -10.0),
    ("ab", NORMAL, -1.0),
    ("▁ab", NORMAL, -2.0),
    ("<tool>", USER, 0.0),
    ("<|im_end|>", NORMAL, 0.0),
    ("[spare]", UNUSED, 0.0),
]
BPE = [
    *((LETTER_OF_BYTE[byte], NORMAL) for byte in range(256)),
    ("he", NORMAL),
    ("hel", NORMAL),
    ("Ġhe", NORMAL),
    ("<|endoftext|>", CONTROL),
    ("<|im_start|>", CONTROL),
    ("<|im_end|>", CONTROL),
    ("  ", USER),
    ("   ", USER),
    ("[PAD]", UNUSED),
]
MERGES = ["h e", "he l", "Ġ he"]


def spm_keys(**changes: Any) -> dict[str, Any]:
    """Metadata of a SentencePiece file: keys without "tokenizer.ggml.", None leaves one out."""
    return {
        "model": "llama",
        "tokens": [text for text, _, _ in SPM],
        "token_type": [int(kind) for _, kind, _ in SPM],
        "scores": [score for _, _, score in SPM],
    } | changes


def bpe_keys(**changes: Any) -> dict[str, Any]:
    """The same of a byte-level BPE file."""
    return {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": [text for text, _ in BPE],
        "token_type": [int(kind) for _, kind in BPE],
        "merges": MERGES,
        "bos_token_id": 259,
        "eos_token_id": 259,
    } | changes


def write(
    path: Path,
    keys: dict[str, Any],
    name: str = "",
    template: str | None = None,
    arch: str = "llama",
) -> Path:
    """The file with these keys; returns its path."""
    writer = GGUFWriter(path, arch)
    if name:
        writer.add_name(name)
    if template is not None:
        writer.add_string("tokenizer.chat_template", template)
    for key, value in keys.items():
        key = f"tokenizer.ggml.{key}"
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif value is not None:
            writer.add_array(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path
