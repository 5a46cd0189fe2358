"""Tokens that llama.cpp knows by their text, as data (llama_vocab::impl::load, llama-vocab.cpp).

Many files name no end-of-turn token, or give it the wrong type: it is then found by its text.
"""

from typing import Final

# Key under "tokenizer.ggml." -> role. Later keys win: the last three are the old names.
ROLE_KEYS: Final = {
    "bos_token_id": "bos",
    "eos_token_id": "eos",
    "eot_token_id": "eot",
    "eom_token_id": "eom",
    "unknown_token_id": "unk",
    "padding_token_id": "pad",
    "fim_pre_token_id": "fim_pre",
    "fim_suf_token_id": "fim_suf",
    "fim_mid_token_id": "fim_mid",
    "fim_pad_token_id": "fim_pad",
    "fim_rep_token_id": "fim_rep",
    "fim_sep_token_id": "fim_sep",
    "prefix_token_id": "fim_pre",
    "suffix_token_id": "fim_suf",
    "middle_token_id": "fim_mid",
}

# Where the file names no token for the role, the first of these texts that it has.
_BY_TEXT: Final = {
    "eot": "<|eot_id|> <|im_end|> <|end|> <end_of_turn> <|endoftext|> <|end_of_text|> <EOT> _<EOT> "
    "[EOT] <｜end▁of▁sentence｜> <end_of_utterance>",
    "eom": "<|eom_id|>",
    "fim_pre": "<|fim_prefix|> <fim-prefix> <fim_prefix> <｜fim▁begin｜> <PRE> ▁<PRE> "
    "<|code_prefix|> <|prefix|>",
    "fim_suf": "<|fim_suffix|> <fim-suffix> <fim_suffix> <｜fim▁hole｜> <SUF> ▁<SUF> "
    "<|code_suffix|> <|suffix|>",
    "fim_mid": "<|fim_middle|> <fim-middle> <fim_middle> <｜fim▁end｜> <MID> ▁<MID> "
    "<|code_middle|> <|middle|>",
    "fim_pad": "<|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD]",
    "fim_rep": "<|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame>",
    "fim_sep": "<|file_sep|>",
}

STOP_ROLES: Final = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")
STOP_TEXTS: Final = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>",
    "<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]",
    "<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>",
    "<｜end▁of▁sentence｜>", "[e~[",
)  # fmt: skip

# gpt-oss: part of the answer's frame, never hidden.
ALWAYS_SHOWN: Final = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")

# Where all of the first are stop tokens, the second is none, and has this type.
NOT_STOPS: Final = (
    (("<|return|>", "<|call|>"), "<|end|>", "user-defined"),
    (("<|return|>", "<|calls|>"), "<|end|>", "user-defined"),
    (("<|flush|>", "<|call|>"), "<|end|>", "user-defined"),
    (("<|flush|>", "<|calls|>"), "<|end|>", "user-defined"),
    (("<|tool_response>",), "</s>", "normal"),
    (("<end_of_turn>", "<eos>"), "</s>", "user-defined"),  # Gemma's: the end of struck-out text
)


def assign_roles(roles: dict[str, int | None], ids: dict[str, int]) -> set[int]:
    """Fills in the roles that the file left open; returns the ids found so, by their text."""
    found = set()
    for role, texts in _BY_TEXT.items():
        token_id = next((ids[text] for text in texts.split() if text in ids), None)
        if roles[role] is None and token_id is not None:
            roles[role] = token_id
            found.add(token_id)
    return found
